"""The entrance: what every call passes, over gRPC and HTTP alike: who calls, the limits, and how it ends."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from saegis_server.audit.log import IdentityFailures
from saegis_server.engine.api import EngineStoppedError
from saegis_server.rpc.auth.authorization import Authorization
from saegis_server.rpc.auth.context import CallContext
from saegis_server.rpc.auth.identities import IdentitiesFile
from saegis_server.rpc.auth.identity import ANONYMOUS, Identity, identity
from saegis_server.rpc.auth.roles import EVERYBODY, OWN_PREFIX
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.gate import Gate, Phase
from saegis_server.rpc.server.limits import Holding, Limiter
from saegis_server.rpc.server.logs import request_id, trace_id, with_fields
from saegis_server.rpc.server.premises import Premises
from saegis_server.rpc.wire.errors import Code, Problem, describe
from saegis_server.rpc.wire.problems import NotServingError
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.traces import REQUEST_ID, UNTRACED, Trace, Traces, current_trace

log = logging.getLogger("saegis.rpc")
LONGEST_REQUEST_ID = 128


@dataclass(slots=True)
class Call:
    """One call of a method while it runs."""

    method: str
    id: str = field(default_factory=lambda: uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    trace: Trace = UNTRACED


def usable_request_id(name: str) -> bool:
    """Whether a caller's request_id can be used: not empty, not too long, and printable in one line."""
    return 0 < len(name) <= LONGEST_REQUEST_ID and name.isprintable()


class Entrance:
    """Authorizes calls, counts them, logs a line for each (never a prompt), and maps exceptions to problems.

    For the event loop only. A transport calls `begin`, holds `inside` while the call runs, `accept`s its
    request, and ends it with `succeeded` or `failed`.
    """

    def __init__(
        self, gate: Gate, metrics: Metrics, authorization: Authorization, limiter: Limiter, traces: Traces
    ) -> None:
        """`limiter` bounds each caller; `traces` follows the calls."""
        self.gate, self.metrics, self.authorization = gate, metrics, authorization
        self._limiter, self._traces = limiter, traces

    @classmethod
    def of(cls, config: ServerConfig, premises: Premises, gate: Gate) -> "Entrance":
        """The entrance of a server. Raises IdentitiesError."""
        authorization = _authorization(config, premises)
        return cls(gate, premises.metrics, authorization, premises.limiter, premises.traces)

    def begin(self, method: str, context: CallContext) -> Call:
        """Begin a call of a method, and its trace."""
        call = Call(method)
        if method.startswith(OWN_PREFIX):
            sent = {
                key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
            }
            call.trace = self._traces.begin(method, sent)
            current_trace.set(call.trace)
            trace_id.set(call.trace.id)
        return call

    @contextmanager
    def inside(self, call: Call, context: CallContext) -> Iterator[Holding]:
        """Let a call in for the length of the block, before anything of its request is read.

        Raises what `Authorization.admit`, `Gate.enter` and `Limiter.enter` raise.
        """
        self.authorization.admit(call.method, context)
        with ExitStack() as stack:
            if call.method.startswith(OWN_PREFIX):
                stack.enter_context(self.gate.enter())
            yield stack.enter_context(self._limiter.enter(_caller(call.method, context)))

    def accept(self, call: Call, request: Any) -> None:
        """Take the request's name, and raise RoleMissingError if its fields need a role that is missing."""
        call.id = _request_id(request) or call.id
        request_id.set(call.id)
        self.authorization.check(call.method, request)

    def succeeded(self, call: Call) -> None:
        """Count and log a call that has been answered."""
        self.ended(call, Code.OK.name)

    def failed(self, error: BaseException, call: Call, context: CallContext) -> Problem | None:
        """Count and log a call that ended with an error; what to tell the client, None if it has gone."""
        if isinstance(error, asyncio.CancelledError):
            # The client has gone or its deadline has passed: nobody receives an answer.
            left = context.time_remaining()
            late = left is not None and left <= 0.0
            self.ended(call, Code.DEADLINE_EXCEEDED.name if late else Code.CANCELLED.name)
            return None
        if isinstance(error, EngineStoppedError) and self.gate.phase is Phase.DRAINING:
            error = NotServingError("DRAINING", "the server stopped before the request was done", 1.0)
        problem = describe(error)
        if "error_id" in problem.metadata:
            log.error("error_id=%s method=%s", problem.metadata["error_id"], call.method, exc_info=error)
        self.ended(call, problem.code.name, problem)
        return problem

    def ended(self, call: Call, code: str, problem: Problem | None = None) -> None:
        """Count and log the end of a call; `code` is the name of its gRPC status."""
        seconds = time.monotonic() - call.began
        self.metrics.count_rpc(call.method, code, seconds)
        reason = problem.reason if problem else None
        call.trace.tell({REQUEST_ID: call.id})
        call.trace.end(code, reason or "")
        told = f" reason={reason}" if reason else ""
        log.info(
            *("method=%s request_id=%s code=%s%s seconds=%.4f", call.method, call.id, code, told, seconds),
            extra=with_fields(
                method=call.method, request_id=call.id, code=code, reason=reason, seconds=round(seconds, 6)
            ),
        )


def _request_id(request: Any) -> str:
    """The request_id of a request or of the request inside it; empty if there is no usable one."""
    name = getattr(getattr(request, "request", request), "request_id", "")
    return name if isinstance(name, str) and usable_request_id(name) else ""


def _caller(method: str, context: CallContext) -> Identity:
    """Whose limits a call counts against; for RPCs without authentication, those of the peer's address."""
    if method not in EVERYBODY:
        return identity.get(ANONYMOUS)
    address = context.peer().rpartition(":")[0]
    return Identity(address, address, frozenset())


def _authorization(config: ServerConfig, premises: Premises) -> Authorization:
    metrics, audit = premises.metrics, premises.audit
    if config.identities is None:
        log.info("no identities: every program of this machine may do everything")
        return Authorization(None, metrics)
    file = IdentitiesFile(config.identities, metrics)
    if file.current().names_certificates and (config.tls is None or config.tls.client_ca is None):
        log.warning("the identities name certificates, but without a client CA nobody is asked for one")
    if audit is None or config.audit is None or config.audit.identity_per_minute == 0:
        return Authorization(file, metrics)
    failures = IdentityFailures(audit, config.audit.identity_per_minute)
    return Authorization(file, metrics, failures.record)
