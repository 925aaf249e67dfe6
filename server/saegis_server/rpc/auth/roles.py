"""Roles: what principals may do, and which roles each RPC needs. Servicers declare the latter."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message


class Role(StrEnum):
    """What a principal may do. No role implies another."""

    USE = "use"
    """Generate text, count tokens, and read what is served."""
    STEER = "steer"
    """Send edits and watches with a request, beside what the RPC needs, and keep directions for them."""
    INSPECT = "inspect"
    """Read features, scores, policies and the contract."""
    OPERATE = "operate"
    """Read how busy the server is, and which features fire in everybody's texts."""
    ADMINISTER = "administer"
    """Put policies in force, and search the audit log."""
    UNRULED = "unruled"
    """Compare scores with the model without the operator's rules, beside what Score itself needs."""


ALL_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Needs:
    """What an RPC needs: a role and, for fields of the request, further roles.

    large: its requests carry prompts or bundles, and may have max_message_bytes. further: roles by field.
    """

    role: Role
    large: bool = False
    further: Mapping[str, Role] = field(default_factory=dict)

    def further_roles(self, request: Any) -> Iterator[tuple[Role, str]]:
        """The further roles that a request needs, each with the field that needs it."""
        for path, role in self.further.items():
            if used := _used(request, path):
                yield role, used


#: What each RPC needs, by its name, such as "/saegis.v1.ModelService/GetLoad". `serves` fills it. An RPC that
#: is not here is open to nobody.
NEEDED: dict[str, Needs] = {
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo": Needs(Role.INSPECT)
    for version in ("v1", "v1alpha")
}
#: What the names of the contract's own methods begin with.
OWN_PREFIX = "/saegis.v1."
#: RPCs that need neither a principal nor a role. Load balancers and orchestrators call them.
EVERYBODY = frozenset(f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch"))

Method = TypeVar("Method", bound=Callable[..., Any])
Servicer = TypeVar("Servicer", bound=type)
_said: dict[object, Needs] = {}


def needs(
    role: Role, *, large: bool = False, further: Mapping[str, Role] = MappingProxyType({})
) -> Callable[[Method], Method]:
    """Declare what a servicer's method needs; see `Needs`. further: by fields such as "request.steering"."""

    def say(method: Method) -> Method:
        _said[method] = Needs(role, large, further)
        return method

    return say


def serves(service: ServiceDescriptor) -> Callable[[Servicer], Servicer]:
    """Enter what a servicer's methods declare into the table NEEDED."""

    def enter(servicer: Servicer) -> Servicer:
        for rpc in service.methods:
            if (needed := _said.get(vars(servicer).get(rpc.name))) is not None:
                NEEDED[f"/{service.full_name}/{rpc.name}"] = needed
        return servicer

    return enter


def _used(request: Any, path: str) -> str:
    """The path of what a request sets at `path`, such as "steering.edits"; "" if it sets nothing there."""
    value = request
    for name in path.split("."):
        value = getattr(value, name)
    if not isinstance(value, Message):
        return path if value else ""
    used = value.ListFields()
    return f"{path}.{used[0][0].name}" if used else ""
