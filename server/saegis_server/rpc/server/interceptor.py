"""The outermost interceptor: it authorizes, counts and logs each RPC and maps each exception to a status."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError

from saegis_server.engine.api import EngineStoppedError
from saegis_server.rpc.auth.authorization import Authorization
from saegis_server.rpc.auth.identity import ANONYMOUS, Identity, identity
from saegis_server.rpc.auth.roles import EVERYBODY
from saegis_server.rpc.server.gate import Gate, Phase
from saegis_server.rpc.server.intake import Intake, check_message
from saegis_server.rpc.server.limits import Limiter
from saegis_server.rpc.server.logs import request_id, trace_id, with_fields
from saegis_server.rpc.wire.errors import Problem, describe, trailers
from saegis_server.rpc.wire.problems import MalformedRequestError, NotServingError
from saegis_server.telemetry.metrics import OTHER_METHOD, Metrics
from saegis_server.telemetry.traces import REQUEST_ID, UNTRACED, Trace, Traces, current_trace

log = logging.getLogger("saegis.rpc")
OWN_PREFIX = "/saegis.v1."
LONGEST_REQUEST_ID = 128
_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Call:
    """One RPC while it runs."""

    method: str
    id: str = field(default_factory=lambda: uuid4().hex)
    began: float = field(default_factory=time.monotonic)
    trace: Trace = UNTRACED


def usable_request_id(name: str) -> bool:
    """Whether a caller's request_id can be used: not empty, not too long, and printable in one line."""
    return 0 < len(name) <= LONGEST_REQUEST_ID and name.isprintable()


class OutermostInterceptor(grpc.aio.ServerInterceptor):
    """Authorizes RPCs, counts them, logs a line for each (never a prompt), and maps exceptions to statuses.

    Every handler gets its requests from here, as bytes. So every RPC is authorized, and nothing of a request
    is received before its caller is known.
    """

    def __init__(
        self,
        gate: Gate,
        metrics: Metrics,
        authorization: Authorization,
        limiter: Limiter,
        intake: Intake,
        traces: Traces,
    ) -> None:
        """`limiter` bounds each caller; `intake` reads the requests; `traces` follows them."""
        self._limiter, self._intake, self._traces = limiter, intake, traces
        self.gate = gate
        self.metrics = metrics
        self.authorization = authorization

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, wrapped; None for a method that does not exist.

        For grpc every request is a stream, since it does not read a stream by itself. On the wire a stream of
        one message is the same as a unary request.
        """
        handler = await continuation(handler_call_details)
        if handler is None:
            self.metrics.count_rpc(OTHER_METHOD, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
            return None
        streams = handler.response_streaming
        make = grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
        return make(
            self._wrapped(handler, handler_call_details.method),
            response_serializer=handler.response_serializer,
        )

    def _wrapped(self, handler: Any, method: str) -> Any:
        kinds = (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
        (inner,) = (kind for kind in kinds if kind is not None)
        read = _reader(handler.request_deserializer)
        writes = inspect.isasyncgenfunction(inner)

        async def run(request: Any, context: _Context) -> Any:
            if not writes:
                return await inner(request, context)
            # Written here and not yielded, so that a cancellation while writing reaches `inner` at once.
            async with aclosing(inner(request, context)) as messages:
                async for message in messages:
                    await self._intake.write(context, message)
            return None

        async def behaviour(sent: AsyncIterator[bytes], context: _Context) -> Any:
            call = _Call(method)
            if method.startswith(OWN_PREFIX):
                self._follow(call, context)
            try:
                self.authorization.admit(method, context)
                with ExitStack() as inside:
                    if method.startswith(OWN_PREFIX):
                        inside.enter_context(self.gate.enter())
                    holding = inside.enter_context(self._limiter.enter(_caller(method, context)))
                    if handler.request_streaming:
                        request = _read(sent, method, read)
                    else:
                        request = read(await self._intake.receive(method, context, holding))
                    call.id = _request_id(request) or call.id
                    request_id.set(call.id)
                    self.authorization.check(method, request)
                    answer = await run(request, context)
            except BaseException as error:
                await self._fail(error, call, context)
                raise
            self._end(call, grpc.StatusCode.OK.name)
            return answer

        return behaviour

    def _follow(self, call: _Call, context: _Context) -> None:
        """Begin the trace of an RPC."""
        sent = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        call.trace = self._traces.begin(call.method, sent)
        current_trace.set(call.trace)
        trace_id.set(call.trace.id)

    async def _fail(self, error: BaseException, call: _Call, context: _Context) -> None:
        """End the RPC with the status of `error`; returns only if it has a status already."""
        if isinstance(error, grpc.aio.AbortError):
            self._end(call, _status(context.code()))
            return
        if isinstance(error, asyncio.CancelledError):
            # The client has gone or its deadline has passed: nobody receives an answer.
            left = context.time_remaining()
            late = left is not None and left <= 0.0
            self._end(
                call, grpc.StatusCode.DEADLINE_EXCEEDED.name if late else grpc.StatusCode.CANCELLED.name
            )
            return
        if isinstance(error, EngineStoppedError) and self.gate.phase is Phase.DRAINING:
            error = NotServingError("DRAINING", "the server stopped before the request was done", 1.0)
        problem = describe(error)
        if "error_id" in problem.metadata:
            log.error("error_id=%s method=%s", problem.metadata["error_id"], call.method, exc_info=error)
        self._end(call, problem.code.name, problem)
        await context.abort(problem.code, problem.message, trailers(problem, call.id))

    def _end(self, call: _Call, code: str, problem: Problem | None = None) -> None:
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


def _status(code: Any) -> str:
    """The plain name of a status, such as NOT_FOUND, which grpc holds as one of its own or as its number."""
    known = {status.value[0]: status for status in grpc.StatusCode}
    status = code if isinstance(code, grpc.StatusCode) else known.get(code, grpc.StatusCode.UNKNOWN)
    return status.name


def _request_id(request: Any) -> str:
    """The request_id of a request or of the request inside it; empty if there is no usable one."""
    name = getattr(getattr(request, "request", request), "request_id", "")
    return name if isinstance(name, str) and usable_request_id(name) else ""


def _caller(method: str, context: _Context) -> Identity:
    """Whose limits an RPC counts against; for RPCs without authentication, those of the peer's address."""
    if method not in EVERYBODY:
        return identity.get(ANONYMOUS)
    address = context.peer().rpartition(":")[0]
    return Identity(address, address, frozenset())


def _reader(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """A parser of a message's bytes. Raises MalformedRequestError; grpc itself would report UNKNOWN."""

    def read(data: bytes) -> Any:
        if deserializer is None:
            return data
        try:
            return deserializer(data)
        except DecodeError as error:
            raise MalformedRequestError(f"the request is no message of the method's type: {error}") from error

    return read


async def _read(sent: AsyncIterator[bytes], method: str, read: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for data in sent:
        check_message(method, data)
        yield read(data)
