"""The intake: requests come in and answers go out, a bounded number at once, each within a bounded time."""

import asyncio
from typing import Any

import grpc

from saegis_server.rpc.auth.roles import EVERYBODY
from saegis_server.rpc.server.limits import RETRY_SECONDS, Holding
from saegis_server.rpc.server.threads import WorkPool
from saegis_server.rpc.server.turns import Turns
from saegis_server.rpc.wire.problems import (
    BusyError,
    MalformedRequestError,
    StalledReaderError,
    UnsentRequestError,
)
from saegis_server.rpc.wire.sizes import check_message, needs_counting

_Context = grpc.aio.ServicerContext[Any, Any]


class Intake:
    """Receives requests and writes the messages of streams. To be used on the event loop.

    At most so many requests are received at once, half as many of one tenant; where nobody is asked who
    they are, of one address. The wait for a client that does not send, or does not read, is bounded.
    """

    def __init__(
        self,
        receive_seconds: float = 10.0,
        write_seconds: float = 60.0,
        at_once: int = 32,
        most_waiting: int = 4096,
    ) -> None:
        self._receive_seconds, self._write_seconds = receive_seconds, write_seconds
        self._known = Turns(at_once, most_waiting, self._full, max(1, at_once // 2))
        self._unknown = Turns(at_once, most_waiting, self._full, max(1, at_once // 8))
        # One at a time: threads that compute in Python keep the event loop waiting, the more the longer.
        self._counting = WorkPool("large requests", 1, most_waiting)

    async def receive(self, method: str, context: _Context, holding: Holding) -> bytes:
        """The one message of a request, which `holding` counts.

        Raises UnsentRequestError, BusyError, MalformedRequestError for none or several messages, and what
        `check_message` raises.
        """
        turns = self._unknown if method in EVERYBODY else self._known
        async with turns.turn(holding.caller.tenant):
            try:
                async with asyncio.timeout(self._receive_seconds):
                    data: Any = await context.read()
                    more = data is not grpc.aio.EOF and await context.read() is not grpc.aio.EOF
            except TimeoutError:
                raise UnsentRequestError(self._receive_seconds) from None
        if more or not isinstance(data, bytes):
            raise MalformedRequestError(
                f"{method} takes one request message, not {'more' if more else 'none'}"
            )
        holding.add(len(data))
        if needs_counting(method, data):
            await self._counting.run(holding.caller.tenant, check_message, method, data)
        else:
            check_message(method, data)
        return data

    async def write(self, context: _Context, message: Any) -> None:
        """Write a message of a stream. Raises StalledReaderError for a client that does not read."""
        try:
            async with asyncio.timeout(self._write_seconds):
                await context.write(message)
        except TimeoutError:
            raise StalledReaderError(self._write_seconds) from None

    def _full(self) -> BusyError:
        return BusyError("SERVER_LIMIT", "intake", "too many requests are coming in", RETRY_SECONDS)
