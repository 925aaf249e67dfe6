"""Fair queues: whoever shares a queue with others waits for one of each, not for all that they sent."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items in the order of their arrival for each party; an owner's parties take turns, and so do owners."""

    def __init__(self, owner: Callable[[T], str], party: Callable[[T], str] = lambda _: "") -> None:
        """`party`: who of the owner's an item is; by default an owner is one party."""
        self._owner, self._party = owner, party
        self._items: OrderedDict[str, OrderedDict[str, deque[T]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(self.count, self._items))

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[T]:
        """Every item, owner by owner and party by party."""
        for parties in list(self._items.values()):
            for items in list(parties.values()):
                yield from items

    @property
    def owners(self) -> tuple[str, ...]:
        """Those who have something here, the next one first."""
        return tuple(self._items)

    def count(self, owner: str) -> int:
        """How much an owner has here."""
        return sum(map(len, self._items.get(owner, {}).values()))

    def append(self, item: T) -> None:
        """Queue an item behind those of its party."""
        parties = self._items.setdefault(self._owner(item), OrderedDict())
        parties.setdefault(self._party(item), deque()).append(item)

    def extend(self, items: Iterable[T]) -> None:
        """Queue several items."""
        for item in items:
            self.append(item)

    def pop(self, owner: str) -> T:
        """Take an owner's next item; it is everyone else's turn before the one after it."""
        party = next(iter(self._items[owner]))
        item = self._items[owner][party].popleft()
        self._items[owner].move_to_end(party)
        self._items.move_to_end(owner)
        self._tidy(owner, party)
        return item

    def remove(self, item: T) -> None:
        """Take an item out. Raises ValueError if it is not here."""
        owner, party = self._owner(item), self._party(item)
        if party not in self._items.get(owner, ()):
            raise ValueError("the item is not in the queue")
        self._items[owner][party].remove(item)
        self._tidy(owner, party)

    def _tidy(self, owner: str, party: str) -> None:
        """Forget who has nothing here any more."""
        if not self._items[owner][party]:
            del self._items[owner][party]
        if not self._items[owner]:
            del self._items[owner]

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()


def has_room(waiting: int, own: int, more: int, most: int) -> bool:
    """Whether `more` items of one party, who has `own` of the `waiting` ones, may be queued.

    A queue that others have filled still takes what little one asks for: up to a quarter of it for each.
    """
    return waiting + more <= most or own + more <= max(1, most // 4)
