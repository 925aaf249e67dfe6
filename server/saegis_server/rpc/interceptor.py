"""The outermost interceptor: it names, counts and logs every RPC and maps every exception to a status."""

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError

from saegis_server.engine.requests import EngineStoppedError
from saegis_server.rpc.errors import Problem, describe, trailers
from saegis_server.rpc.gate import Gate, Phase
from saegis_server.rpc.problems import MalformedRequestError, NotServingError
from saegis_server.telemetry.metrics import OTHER_METHOD, Metrics

log = logging.getLogger("saegis.rpc")
OWN_PREFIX = "/saegis.v1."
LONGEST_REQUEST_ID = 128
_Context = grpc.aio.ServicerContext[Any, Any]

#: The id of the RPC that runs in this task: the caller's if it gave a usable one.
request_id: ContextVar[str] = ContextVar("request_id")


@dataclass(slots=True)
class _Malformed:
    """Stands for a request whose bytes could not be read."""

    description: str


@dataclass(slots=True)
class _Call:
    """One RPC while it runs."""

    method: str
    id: str
    began: float = field(default_factory=time.monotonic)


def usable_request_id(name: str) -> bool:
    """Whether a caller's request_id can be taken: not empty, not too long, and printable in one line."""
    return 0 < len(name) <= LONGEST_REQUEST_ID and name.isprintable()


class OutermostInterceptor(grpc.aio.ServerInterceptor):
    """Maps exceptions to statuses, counts, logs one line an RPC (never a prompt), and asks the gate."""

    def __init__(self, gate: Gate, metrics: Metrics) -> None:
        self.gate = gate
        self.metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's handler, wrapped; None for a method that does not exist."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method
        if handler is None:
            self.metrics.count_rpc(OTHER_METHOD, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
            return None
        if handler.request_streaming:
            # Reflection alone has streaming requests; grpc's own servicer maps its errors.
            return handler
        streams = handler.response_streaming
        wrap = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        return wrap(
            self._wrapped(handler.unary_stream if streams else handler.unary_unary, name),
            request_deserializer=_forgiving(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _wrapped(self, inner: Callable[[Any, _Context], Any], method: str) -> Any:
        writes = inspect.isasyncgenfunction(inner)

        async def run(request: Any, context: _Context) -> Any:
            if not writes:
                return await inner(request, context)
            # Written here and not yielded on, so that a cancellation while writing reaches `inner` at once.
            async with aclosing(inner(request, context)) as messages:
                async for message in messages:
                    await context.write(message)
            return None

        async def behaviour(request: Any, context: _Context) -> Any:
            call = self._begin(method, request)
            try:
                _refuse_malformed(request)
                with self.gate.enter() if method.startswith(OWN_PREFIX) else nullcontext():
                    answer = await run(request, context)
            except BaseException as error:
                await self._fail(error, call, context)
                raise
            self._end(call, grpc.StatusCode.OK.name)
            return answer

        return behaviour

    def _begin(self, method: str, request: Any) -> _Call:
        given = getattr(getattr(request, "request", request), "request_id", "")
        call = _Call(method, given if isinstance(given, str) and usable_request_id(given) else uuid4().hex)
        request_id.set(call.id)
        return call

    async def _fail(self, error: BaseException, call: _Call, context: _Context) -> None:
        """Give the RPC the status of `error`; returns where it has one already."""
        if isinstance(error, grpc.aio.AbortError):
            self._end(call, str(context.code()))
            return
        if isinstance(error, asyncio.CancelledError):
            # The client has gone or its deadline has passed: nobody hears an answer.
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
        reason = f" reason={problem.reason}" if problem else ""
        log.info(
            "method=%s request_id=%s code=%s%s seconds=%.4f", call.method, call.id, code, reason, seconds
        )


def _forgiving(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserializer that gives `_Malformed` instead of raising, which grpc would report as UNKNOWN."""
    if deserializer is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError as error:
            return _Malformed(f"the request is no message of the method's type: {error}")

    return read


def _refuse_malformed(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise MalformedRequestError(request.description)
