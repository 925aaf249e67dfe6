"""Threads: work off the event loop, in threads that end with it.

OpenMP keeps a team of threads for each thread that ever ran a parallel region. Once there are more of them
than cores it lets them all sleep between regions, and the engine's steps then take a third longer. A thread
that ends takes its team with it, so nothing that computes runs in a pool of lasting threads.
"""

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from threading import Event, Thread
from typing import Any, TypeVar

from saegis_server.rpc.server.turns import Turns
from saegis_server.rpc.wire.problems import BusyError

T = TypeVar("T")
#: How soon work that found no place may be tried again.
RETRY_SECONDS = 1.0
#: Set once nobody waits any more for what runs in this thread.
_unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)


class UnwantedError(Exception):
    """Nobody waits for the work any more."""


def stop_if_unwanted() -> None:
    """Raise UnwantedError where the caller has left; long work asks between its pieces."""
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted.is_set():
        raise UnwantedError


async def in_own_thread(function: Callable[[], T]) -> T:
    """Run what takes long in a thread of its own, which does not keep the process from ending."""
    return await _start(function, lambda: None)


async def _start(function: Callable[[], T], ended: Callable[[], None]) -> T:
    """As `in_own_thread`; `ended` is called on the loop once the thread has done, whoever still waits."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    unwanted = Event()

    def finish(set_result: Callable[[], None]) -> None:
        ended()
        if not done.done():
            set_result()

    def run() -> None:
        _unwanted.set(unwanted)
        try:
            result = function()
        except BaseException as error:
            report = partial(done.set_exception, error)
        else:
            report = partial(done.set_result, result)
        try:
            loop.call_soon_threadsafe(finish, report)
        except RuntimeError:
            # The loop has closed: nobody waits.
            return

    try:
        Thread(target=run, name="saegis-work", daemon=True).start()
    except BaseException:
        ended()
        raise
    try:
        return await done
    except asyncio.CancelledError:
        unwanted.set()
        raise


class WorkPool:
    """Work of one kind: so much of it at once, so much that waits, fairly among tenants.

    Work whose caller leaves is not begun; what runs already keeps its place until its thread has ended.
    """

    def __init__(self, name: str, at_once: int, most_waiting: int) -> None:
        """`name` says in errors whose queue is full."""
        self._turns = Turns(at_once, most_waiting, self._full)
        self.name = name

    @property
    def waiting(self) -> int:
        """How much waits."""
        return self._turns.waiting

    @property
    def running(self) -> int:
        """How much runs, work whose caller has left included."""
        return self._turns.held

    async def run(self, tenant: str, function: Callable[..., T], *args: Any) -> T:
        """Run a function in a thread of its own once it is its turn. Raises BusyError, and what it raises."""
        await self._turns.take(tenant)
        return await _start(lambda: function(*args), lambda: self._turns.give_back(tenant))

    def _full(self) -> BusyError:
        described = f"too much {self.name} waits already; try again soon"
        return BusyError("WORK_QUEUE_FULL", self.name, described, RETRY_SECONDS)
