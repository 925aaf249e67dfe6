"""The mailbox between the engine's thread and one RPC: events go in, batches of events come out."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock

from saegis_server.engine.api import Delta, Event, RequestFailed, RequestFinished
from saegis_server.rpc.wire.problems import SlowReaderError


class Mailbox:
    """Takes events on the engine's thread and returns them, in order, on the event loop.

    Events that come before the loop reads them wake it only once. If the reader does not keep up and more
    than `limit` tokens wait, `on_overflow` is called on the loop and no further events are kept.
    """

    def __init__(self, limit: int, on_overflow: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit
        self._on_overflow = on_overflow
        self._lock = Lock()
        self._events: deque[Event] = deque()
        self._tokens = 0
        self._overflowed = False
        self._scheduled = False
        self._filled = asyncio.Event()

    def put(self, events: list[Event]) -> None:
        """Take events; never blocks. Called on the engine's thread."""
        with self._lock:
            if self._overflowed:
                return
            self._events.extend(events)
            self._tokens += sum(len(event.tokens) for event in events if isinstance(event, Delta))
            if self._tokens > self._limit:
                self._overflowed = True
                self._events.clear()
            if self._scheduled:
                return
            self._scheduled = True
        # A loop that has closed has no reader any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._scheduled = False
            overflowed = self._overflowed
        if overflowed:
            self._on_overflow()
        self._filled.set()

    async def get(self) -> list[Event]:
        """Wait for all events since the last call, at least one. Raises SlowReaderError after an overflow."""
        while True:
            with self._lock:
                if self._overflowed:
                    raise SlowReaderError(self._limit)
                events = list(self._events)
                self._events.clear()
                self._tokens = 0
                self._filled.clear()
            if events:
                return events
            await self._filled.wait()


def closing(events: list[Event]) -> RequestFinished | None:
    """The closing event, if it is among `events`. Raises the error of a request that failed."""
    for event in events:
        if isinstance(event, RequestFailed):
            raise event.error
        if isinstance(event, RequestFinished):
            return event
    return None
