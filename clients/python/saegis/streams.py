"""The iterators that `stream` returns: chunks as they come, then the closing message."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, cast

import grpc
import grpc.aio

from saegis.errors import Cancelled, InternalError, from_rpc_error
from saegis.generation import Chunk, Final, Generation, assemble, chunk, final
from saegis.unreached import Reach
from saegis.v1 import generation_pb2

_Response = generation_pb2.StreamGenerateResponse
AsyncCall = grpc.aio.UnaryStreamCall[generation_pb2.StreamGenerateRequest, _Response]


class Call(Protocol):
    """The part of a blocking grpc stream that is used."""

    def __next__(self) -> _Response: ...
    def cancel(self) -> bool: ...


class _Progress:
    """What both kinds of stream hold: the chunks so far and the closing message."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._final: Final | None = None
        self._closed = False

    @property
    def final(self) -> Final:
        """The closing message with usage and receipt. Raises RuntimeError before the stream has ended."""
        if self._final is None:
            raise RuntimeError("the stream has not ended: read it to its end first")
        return self._final

    def _accept(self, message: _Response) -> Chunk | None:
        """The message's chunk, or None for the closing message. Raises InternalError for any other."""
        kind = message.WhichOneof("response")
        if kind is None:
            raise InternalError("a message holds neither a chunk nor the end", reason="CONTRACT_BROKEN")
        if self._final is not None:
            raise InternalError("the stream went on after its closing message", reason="CONTRACT_BROKEN")
        if kind == "complete":
            self._final = final(message.complete)
            return None
        self._chunks.append(chunk(message.chunk))
        return self._chunks[-1]

    def _check_end(self) -> None:
        if self._final is None:
            raise InternalError("the stream ended without its closing message", reason="CONTRACT_BROKEN")


class Stream(_Progress):
    """Chunks of one request, in the order in which they come; with n > 1 their indices alternate.

    Iterate over it, then read `final`; or call `collect`. Leaving it early cancels the generation: by
    `close`, by the end of a `with` block, or by deleting it. Raises subclasses of SaegisError.
    """

    def __init__(self, call: Call, reach: Reach) -> None:
        super().__init__()
        self._call = call
        self._reach = reach

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        while True:
            try:
                message = next(self._call)
            except StopIteration:
                self._check_end()
                raise
            except grpc.RpcError as error:
                raise from_rpc_error(error, self._reach) from error
            if (piece := self._accept(message)) is not None:
                return piece

    def collect(self) -> Generation:
        """Read the stream to its end; returns what `generate` would have returned."""
        for _ in self:
            pass
        return assemble(self._chunks, self.final)

    def close(self) -> None:
        """Cancel the generation unless it has ended."""
        self._closed = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncStream(_Progress):
    """Chunks of one request, in the order in which they come: the asyncio twin of `Stream`."""

    def __init__(self, call: AsyncCall, loop: asyncio.AbstractEventLoop, reach: Reach) -> None:
        super().__init__()
        self._call = call
        self._reach = reach
        self._loop = loop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        while True:
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                raise from_rpc_error(error, self._reach) from error
            except asyncio.CancelledError:
                if self._closed:
                    raise Cancelled("the stream was closed") from None
                raise
            if message is grpc.aio.EOF:
                self._check_end()
                raise StopAsyncIteration
            if (piece := self._accept(cast(_Response, message))) is not None:
                return piece

    async def collect(self) -> Generation:
        """Read the stream to its end; returns what `generate` would have returned."""
        async for _ in self:
            pass
        return assemble(self._chunks, self.final)

    async def close(self) -> None:
        """Cancel the generation unless it has ended."""
        self._closed = True
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # Runs in any thread, perhaps after the loop has closed; then there is nothing left to cancel.
        if not self._call.done():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)
