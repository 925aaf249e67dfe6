"""Roles: what principals may do, and which role each RPC needs."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    """What a principal may do. No role implies another: whoever may do two things has two roles."""

    USE = "use"
    """Generate text, count tokens, and read what is served."""
    STEER = "steer"
    """Send edits and watches with a request, beside what the RPC itself needs."""
    INSPECT = "inspect"
    """Read features, scores, policies and the contract."""
    OPERATE = "operate"
    """Read how busy the server is."""
    ADMINISTER = "administer"
    """Put policies in force."""
    UNRULED = "unruled"
    """Compare scores with the model without the operator's rules, beside what Score itself needs."""


ALL_ROLES = frozenset(Role)

#: The role that each RPC needs, by service. An RPC that is not here is open to nobody.
_NEEDED: Mapping[str, Mapping[str, Role]] = {
    "saegis.v1.GenerationService": {
        "Generate": Role.USE,
        "StreamGenerate": Role.USE,
        "Score": Role.INSPECT,
    },
    "saegis.v1.FeatureService": {
        "Inspect": Role.INSPECT,
        "GetFeature": Role.INSPECT,
        "SearchFeatures": Role.INSPECT,
        "ContrastFeatures": Role.INSPECT,
    },
    "saegis.v1.ModelService": {
        "GetModel": Role.USE,
        "GetServerInfo": Role.USE,
        "GetLoad": Role.OPERATE,
        "Tokenize": Role.USE,
        "Detokenize": Role.USE,
    },
    "saegis.v1.PolicyService": {
        "GetPolicy": Role.INSPECT,
        "ListPolicies": Role.INSPECT,
        "ListPolicyRevisions": Role.INSPECT,
        "ValidatePolicy": Role.INSPECT,
        "EvaluatePolicy": Role.INSPECT,
        "PutPolicy": Role.ADMINISTER,
        "RollBackPolicy": Role.ADMINISTER,
    },
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": Role.INSPECT},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": Role.INSPECT},
}
#: The table by full method name, such as "/saegis.v1.ModelService/GetLoad".
NEEDED: Mapping[str, Role] = {
    f"/{service}/{method}": role for service, methods in _NEEDED.items() for method, role in methods.items()
}
#: RPCs that need neither a principal nor a role: load balancers and orchestrators ask them.
EVERYBODY = frozenset(f"/grpc.health.v1.Health/{method}" for method in ("Check", "List", "Watch"))

#: Where a request carries the steering that it asks for. Policies are evaluated on steering without running
#: it, so EvaluatePolicy is not here.
_STEERING: Mapping[str, tuple[str, ...]] = {
    "/saegis.v1.GenerationService/Generate": ("steering",),
    "/saegis.v1.GenerationService/StreamGenerate": ("request", "steering"),
    "/saegis.v1.GenerationService/Score": ("steering",),
}


#: Where a request asks for what the model would say without the operator's rules.
_UNRULED: Mapping[str, str] = {"/saegis.v1.GenerationService/Score": "unruled"}


def further_roles(method: str, request: Any) -> Iterator[tuple[Role, str]]:
    """The roles that a request needs beside that of its RPC, each with the field that needs it."""
    if field := steering_field(method, request):
        yield Role.STEER, field
    field = _UNRULED.get(method, "")
    if field and getattr(request, field):
        yield Role.UNRULED, field


def steering_field(method: str, request: Any) -> str:
    """The field by which a request steers, such as "steering.edits"; empty where it does not."""
    path = _STEERING.get(method, ())
    message = request
    for name in path:
        message = getattr(message, name)
    used = message.ListFields() if path else ()
    return ".".join((*path, used[0][0].name)) if used else ""
