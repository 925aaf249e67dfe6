"""Fair queues: an owner waits for one item of each other owner, not for everything that they sent."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which owners take turns, and so do an owner's parties. A party's items keep their order."""

    def __init__(self, owner: Callable[[T], str], party: Callable[[T], str] = lambda _: "") -> None:
        """owner: whose an item is. party: which of the owner's parties it belongs to; by default to one."""
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
        """The owners with queued items, the next one first."""
        return tuple(self._items)

    def count(self, owner: str) -> int:
        """How many items an owner has queued."""
        return sum(map(len, self._items.get(owner, {}).values()))

    def append(self, item: T) -> None:
        """Queue an item behind the others of its party."""
        parties = self._items.setdefault(self._owner(item), OrderedDict())
        parties.setdefault(self._party(item), deque()).append(item)

    def extend(self, items: Iterable[T]) -> None:
        """Queue several items."""
        for item in items:
            self.append(item)

    def pop(self, owner: str) -> T:
        """Take an owner's next item. Then all other owners have a turn before this one."""
        party = next(iter(self._items[owner]))
        item = self._items[owner][party].popleft()
        self._items[owner].move_to_end(party)
        self._items.move_to_end(owner)
        self._tidy(owner, party)
        return item

    def remove(self, item: T) -> None:
        """Remove an item. Raises ValueError if it is not queued."""
        owner, party = self._owner(item), self._party(item)
        if party not in self._items.get(owner, ()):
            raise ValueError("the item is not in the queue")
        self._items[owner][party].remove(item)
        self._tidy(owner, party)

    def _tidy(self, owner: str, party: str) -> None:
        """Forget a party and an owner without items."""
        if not self._items[owner][party]:
            del self._items[owner][party]
        if not self._items[owner]:
            del self._items[owner]

    def clear(self) -> None:
        """Remove all items."""
        self._items.clear()


def has_room(waiting: int, own: int, more: int, most: int, share: float = 0.25) -> bool:
    """Whether a party that has `own` of the `waiting` items may queue `more`, where `most` fit.

    A party with few items finds room in a full queue too: up to a `share` of `most`, one at least.
    """
    return waiting + more <= most or own + more <= max(1, int(most * share))
