"""The clients: the blocking one, and its twin for asyncio."""

# A timeout is the RPC's deadline, which is sent to the server; asyncio.timeout could not do that. There is no
# event to wait for readiness, so the server is polled.
# ruff: noqa: ASYNC109, ASYNC110

import asyncio
import time
from collections.abc import Awaitable
from functools import cached_property
from types import TracebackType
from typing import Self, Unpack, cast

import grpc
import grpc.aio

from saegis.audit import AuditMethods
from saegis.base import (
    GENERATION_SERVICE,
    HEALTH_TIMEOUT_SECONDS,
    HealthRequest,
    Patience,
    why_not_ready,
)
from saegis.directions import DirectionMethods
from saegis.errors import SaegisError, from_rpc_error
from saegis.features import FeatureMethods
from saegis.generation import GenerationMethods, GenerationOptions, generate_request
from saegis.model import ModelMethods
from saegis.policies import PolicyMethods
from saegis.rpc import Request, Response, Stubs
from saegis.streams import AsyncCall, AsyncStream, Stream
from saegis.v1 import generation_pb2 as pb


class _Methods(
    GenerationMethods, FeatureMethods, DirectionMethods, ModelMethods, PolicyMethods, AuditMethods
):
    """The RPCs that both clients have as methods."""


class Client(_Methods):
    """Talks to a Saegis server; every method waits for its answer.

        with Client("127.0.0.1:50051") as client:
            messages = [{"role": "user", "content": "Tell me about the sea."}]
            bridge = clamp(1785, 50.0)
            answer = client.generate(messages=messages, steering=[bridge], temperature=0.0)
            print(answer.text, answer.receipt.steered)

    Safe to share between threads. `timeout` is a call's deadline in seconds; None means the client's,
    `math.inf` means none. Calls that fail raise subclasses of `saegis.SaegisError`; arguments that cannot be
    written into a request raise TypeError or ValueError.
    """

    def _open(self) -> None:
        self._channel = (
            grpc.insecure_channel(self.target, self._options)
            if self._credentials is None
            else grpc.secure_channel(self.target, self._credentials, self._options)
        )
        self._stubs = Stubs(self._channel)

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Continue a prompt as `generate` does, chunk by chunk. Errors surface in the iteration."""
        request = pb.StreamGenerateRequest(request=generate_request(prompt, options))
        method = self._stubs.generation.StreamGenerate
        call = method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        return Stream(call, self._reach)

    def healthy(
        self, service: str = GENERATION_SERVICE, *, timeout: float | None = HEALTH_TIMEOUT_SECONDS
    ) -> bool:
        """Whether the server reports that it serves; False if it cannot be reached. Never retried."""
        return not self._why_not_ready(service, timeout)

    def _why_not_ready(self, service: str, timeout: float | None) -> str:
        try:
            answer = self._call(self._stubs.health, HealthRequest(value=service), timeout)
        except SaegisError as error:
            return why_not_ready(error)
        return why_not_ready(answer)

    def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Wait until the server says that it serves. Raises DeadlineExceeded after `timeout` seconds."""
        patience = Patience(self.target, deadline=time.monotonic() + timeout)
        once = min(timeout, HEALTH_TIMEOUT_SECONDS)
        while why := self._why_not_ready(GENERATION_SERVICE, once):
            time.sleep(patience.pause(time.monotonic(), why))

    def close(self) -> None:
        """Close the connection; calls that still run end with Cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float | None,
    ) -> Response:
        try:
            return method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._reach) from error


class AsyncClient(_Methods):
    """Talks to a Saegis server from asyncio: the twin of `Client`, method for method.

        async with AsyncClient("127.0.0.1:50051") as client:
            async for chunk in client.stream("The bridge", max_tokens=32):
                print(chunk.text, end="")

    Safe to share between tasks of one event loop. `timeout` is a call's deadline in seconds; None means the
    client's, `math.inf` means none. Calls that fail raise subclasses of `saegis.SaegisError`; arguments that
    cannot be written into a request raise TypeError or ValueError.
    """

    _is_async = True

    # Made at the first call, because grpc.aio binds a channel to the running event loop.
    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, self._options)
        return grpc.aio.secure_channel(self.target, self._credentials, self._options)

    @cached_property
    def _stubs(self) -> Stubs:
        return Stubs(self._channel)

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AsyncStream:
        """Continue a prompt as `generate` does, chunk by chunk.

        Needs a running event loop; errors surface in the iteration.
        """
        loop = asyncio.get_running_loop()
        request = pb.StreamGenerateRequest(request=generate_request(prompt, options))
        method = self._stubs.generation.StreamGenerate
        call = method(request, timeout=self._deadline(timeout), metadata=self._metadata)
        return AsyncStream(cast(AsyncCall, call), loop, self._reach)

    async def healthy(
        self, service: str = GENERATION_SERVICE, *, timeout: float | None = HEALTH_TIMEOUT_SECONDS
    ) -> bool:
        """Whether the server reports that it serves; False if it cannot be reached. Never retried."""
        return not await self._why_not_ready(service, timeout)

    async def _why_not_ready(self, service: str, timeout: float | None) -> str:
        try:
            answer = await self._call(self._stubs.health, HealthRequest(value=service), timeout)
        except SaegisError as error:
            return why_not_ready(error)
        return why_not_ready(answer)

    async def wait_until_ready(self, timeout: float = 120.0) -> None:
        """Wait until the server says that it serves. Raises DeadlineExceeded after `timeout` seconds."""
        patience = Patience(self.target, deadline=time.monotonic() + timeout)
        once = min(timeout, HEALTH_TIMEOUT_SECONDS)
        while why := await self._why_not_ready(GENERATION_SERVICE, once):
            await asyncio.sleep(patience.pause(time.monotonic(), why))

    async def close(self) -> None:
        """Close the connection; calls that still run end with Cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout: float | None,
    ) -> Response:
        try:
            # Type checkers take the stubs for blocking ones; on this channel their calls are awaitable.
            call = method(request, timeout=self._deadline(timeout), metadata=self._metadata)
            return await cast(Awaitable[Response], call)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._reach) from error
