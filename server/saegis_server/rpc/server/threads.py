"""Threads and turns: runs work off the event loop, bounds how much runs at once, and takes turns fairly.

OpenMP keeps a team of threads for each thread that ever ran a parallel region. If there are more of them than
cores, they all sleep between regions, and the engine's steps take a third longer. A thread that ends takes
its team with it, so computations never run in a pool of lasting threads.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import Any, TypeVar

from saegis_server.fair import FairQueue, has_room
from saegis_server.rpc.wire.problems import BusyError


@dataclass(eq=False, slots=True)
class _Waiter:
    owner: str
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns:
    """Bounds how many turns are taken at once and how many callers wait for one. For the event loop only.

    A free turn goes to the owner who holds the fewest, and of those to one who did not have the last turn.
    """

    def __init__(
        self, at_once: int, most_waiting: int, full: Callable[[], Exception], most_each: int | None = None
    ) -> None:
        """`full` makes the error if too many callers wait; one owner holds at most `most_each` turns."""
        self._free = at_once
        self._most_waiting = most_waiting
        self._most_each = most_each or at_once
        self._full = full
        self._held: Counter[str] = Counter()
        self._waiting: FairQueue[_Waiter] = FairQueue(lambda waiter: waiter.owner)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """How many turns are taken."""
        return self._held.total()

    async def take(self, owner: str) -> None:
        """Wait for a turn, which `give_back` ends. Raises what `full` makes."""
        if self._free > 0 and self._held[owner] < self._most_each and not self._waiting.count(owner):
            self._hold(owner)
            return
        if not has_room(len(self._waiting), self._waiting.count(owner), 1, self._most_waiting):
            raise self._full()
        waiter = _Waiter(owner)
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if not waiter.turn.cancelled():
                self.give_back(owner)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def give_back(self, owner: str) -> None:
        """End a turn."""
        self._free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        while self._free > 0:
            due = [name for name in self._waiting.owners if self._held[name] < self._most_each]
            if not due:
                return
            waiter = self._waiting.pop(min(due, key=lambda name: (self._held[name], name == owner)))
            if not waiter.turn.cancelled():  # else the caller has left, but its task has not run since
                self._hold(waiter.owner)
                waiter.turn.set_result(None)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Hold a turn for the length of the block."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

    def _hold(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1


T = TypeVar("T")
#: After how long work that found no place may be tried again.
RETRY_SECONDS = 1.0
#: Set once nobody waits any more for the work in this thread.
_unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)


class UnwantedError(Exception):
    """Nobody waits for the work any more."""


def stop_if_unwanted() -> None:
    """Raise UnwantedError if the caller has left. Long work calls it between its parts."""
    unwanted = _unwanted.get()
    if unwanted is not None and unwanted.is_set():
        raise UnwantedError


async def in_own_thread(function: Callable[[], T]) -> T:
    """Run a function in a new thread, which does not keep the process from ending."""
    return await _start(function, lambda: None)


async def _start(function: Callable[[], T], ended: Callable[[], None]) -> T:
    """As `in_own_thread`; `ended` is called on the loop once the thread is done, even if nobody waits."""
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
    """Runs work of one kind, fairly among tenants; bounds how much runs at once and how much waits.

    If the caller leaves, waiting work is dropped; running work keeps its place until its thread has ended.
    """

    def __init__(self, name: str, at_once: int, most_waiting: int) -> None:
        """`name`: the kind of work, as errors name it."""
        self._turns = Turns(at_once, most_waiting, self._full)
        self.name = name

    @property
    def waiting(self) -> int:
        """How many pieces of work wait."""
        return self._turns.waiting

    @property
    def running(self) -> int:
        """How many pieces of work run, those whose caller has left included."""
        return self._turns.held

    async def run(self, tenant: str, function: Callable[..., T], *args: Any) -> T:
        """Run a function in a new thread when its turn comes. Raises BusyError and what it raises."""
        await self._turns.take(tenant)
        return await _start(lambda: function(*args), lambda: self._turns.give_back(tenant))

    def _full(self) -> BusyError:
        described = f"too much {self.name} waits already; try again soon"
        return BusyError("WORK_QUEUE_FULL", self.name, described, RETRY_SECONDS)
