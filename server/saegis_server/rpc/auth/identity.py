"""Identity: who calls, for which tenant, in which roles."""

from contextvars import ContextVar
from dataclasses import dataclass

from saegis_server.policy.decide.disclosure import Audience
from saegis_server.rpc.auth.roles import ALL_ROLES, Role
from saegis_server.rpc.wire.problems import RoleMissingError


@dataclass(frozen=True, slots=True)
class Identity:
    """A principal: its name in logs and records, the tenant it belongs to, and what it may do."""

    name: str
    tenant: str
    roles: frozenset[Role]

    def require(self, role: Role, method: str = "", field: str = "") -> None:
        """Raise RoleMissingError unless it has a role. method, field: what needs it, where known."""
        if role not in self.roles:
            raise RoleMissingError(role, method, field)

    @property
    def audience(self) -> Audience:
        """As whom the policies are told to it."""
        return Audience(self.tenant, Role.ADMINISTER in self.roles)


#: Whoever calls a server that asks nobody who they are.
ANONYMOUS = Identity("anonymous", "default", ALL_ROLES)

#: Who calls the RPC that runs in this task.
identity: ContextVar[Identity] = ContextVar("identity")


def current_identity() -> Identity:
    """Who calls the RPC that runs in this task. Raises LookupError outside of an RPC that needs a role."""
    return identity.get()


def current_audience() -> Audience:
    """As whom the caller is told of policies; outside of an RPC as one who may learn the least."""
    caller = identity.get(None)
    return Audience("") if caller is None else caller.audience
