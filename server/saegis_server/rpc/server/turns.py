"""Turns: a bound on how much of one thing is done at once, and whose turn is next, fairly among owners."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from saegis_server.fair import FairQueue, has_room


@dataclass(eq=False, slots=True)
class _Waiter:
    owner: str
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns:
    """A number of turns that may be taken at once, and a number of callers that may wait for one.

    To be used on the event loop.

    A free turn goes to the owner who holds the fewest, and among those to whoever did not just have one.
    """

    def __init__(
        self, at_once: int, most_waiting: int, full: Callable[[], Exception], most_each: int | None = None
    ) -> None:
        """`full` makes what is raised where too many wait; one owner holds at most `most_each` turns."""
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
        """Wait for a turn; whoever has one gives it back. Raises what `full` makes."""
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
            due = [each for each in self._waiting.owners if self._held[each] < self._most_each]
            if not due:
                return
            waiter = self._waiting.pop(min(due, key=lambda each: (self._held[each], each == owner)))
            if not waiter.turn.cancelled():  # by a caller who has left, and whose task has not run since
                self._hold(waiter.owner)
                waiter.turn.set_result(None)

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """Have a turn for the length of a block."""
        await self.take(owner)
        try:
            yield
        finally:
            self.give_back(owner)

    def _hold(self, owner: str) -> None:
        self._free -= 1
        self._held[owner] += 1
