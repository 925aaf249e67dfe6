"""The outermost interceptor: it takes each RPC through the entrance and maps each exception to a status."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from saegis_server.rpc.server.entrance import Call, Entrance
from saegis_server.rpc.server.intake import Intake, check_message
from saegis_server.rpc.wire.errors import trailers
from saegis_server.rpc.wire.problems import MalformedRequestError
from saegis_server.telemetry.metrics import OTHER_METHOD

_Context = grpc.aio.ServicerContext[Any, Any]


class OutermostInterceptor(grpc.aio.ServerInterceptor):
    """Takes RPCs through the entrance and maps exceptions to statuses.

    Every handler gets its requests from here, as bytes. So every RPC is authorized, and nothing of a request
    is received before its caller is known.
    """

    def __init__(self, entrance: Entrance, intake: Intake) -> None:
        """`intake` reads the requests."""
        self._entrance, self._intake = entrance, intake

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
            self._entrance.metrics.count_rpc(OTHER_METHOD, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
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
        entrance = self._entrance

        async def run(request: Any, context: _Context) -> Any:
            if not writes:
                return await inner(request, context)
            # Written here and not yielded, so that a cancellation while writing reaches `inner` at once.
            async with aclosing(inner(request, context)) as messages:
                async for message in messages:
                    await self._intake.write(context.write(message))
            return None

        async def behaviour(sent: AsyncIterator[bytes], context: _Context) -> Any:
            call = entrance.begin(method, context)
            try:
                with entrance.inside(call, context) as holding:
                    if handler.request_streaming:
                        request = _read(sent, method, read)
                    else:
                        request = read(await self._intake.receive(method, context, holding))
                    entrance.accept(call, request)
                    answer = await run(request, context)
            except BaseException as error:
                await self._fail(error, call, context)
                raise
            entrance.succeeded(call)
            return answer

        return behaviour

    async def _fail(self, error: BaseException, call: Call, context: _Context) -> None:
        """End the RPC with the status of `error`; returns only if it has a status already, or no reader."""
        if isinstance(error, grpc.aio.AbortError):
            self._entrance.ended(call, _status(context.code()))
        elif (problem := self._entrance.failed(error, call, context)) is not None:
            await context.abort(problem.code, problem.message, trailers(problem, call.id))


def _status(code: Any) -> str:
    """The plain name of a status, such as NOT_FOUND, which grpc holds as one of its own or as its number."""
    known = {status.value[0]: status for status in grpc.StatusCode}
    status = code if isinstance(code, grpc.StatusCode) else known.get(code, grpc.StatusCode.UNKNOWN)
    return status.name


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
