"""Identity: who calls, for which tenant, in which roles."""

from contextvars import ContextVar
from dataclasses import dataclass

from saegis_server.policy.decide.disclosure import Audience
from saegis_server.rpc.auth.roles import ALL_ROLES, Role
from saegis_server.rpc.wire.problems import RoleMissingError


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller: its name in logs and records, its tenant, and its roles."""

    name: str
    tenant: str
    roles: frozenset[Role]

    def require(self, role: Role, method: str = "", field: str = "") -> None:
        """Raise RoleMissingError unless it has the role. method, field: what needs the role, if known."""
        if role not in self.roles:
            raise RoleMissingError(role, method, field)

    @property
    def audience(self) -> Audience:
        """What it may learn about the policies."""
        return Audience(self.tenant, Role.ADMINISTER in self.roles)


#: Every caller of a server without identities.
ANONYMOUS = Identity("anonymous", "default", ALL_ROLES)

#: The caller of the RPC that runs in this task.
identity: ContextVar[Identity] = ContextVar("identity")


def current_identity() -> Identity:
    """The caller of the RPC that runs in this task. Raises LookupError outside an RPC that needs a role."""
    return identity.get()


def current_audience() -> Audience:
    """What the caller may learn about the policies; outside of an RPC, the least."""
    caller = identity.get(None)
    return Audience("") if caller is None else caller.audience
