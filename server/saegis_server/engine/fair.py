"""Fair queues: whoever shares a queue with others waits for one of each, not for all that they sent."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items in the order of their arrival for each owner, the owners in turn."""

    def __init__(self, owner: Callable[[T], str]) -> None:
        self._owner = owner
        self._items: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._items.values()))

    def __bool__(self) -> bool:
        return bool(self._items)

    def __iter__(self) -> Iterator[T]:
        """Every item, owner by owner."""
        for items in list(self._items.values()):
            yield from items

    @property
    def owners(self) -> tuple[str, ...]:
        """Those who have something here, the next one first."""
        return tuple(self._items)

    def count(self, owner: str) -> int:
        """How much an owner has here."""
        return len(self._items.get(owner, ()))

    def append(self, item: T) -> None:
        """Queue an item behind those of its owner."""
        self._items.setdefault(self._owner(item), deque()).append(item)

    def extend(self, items: Iterable[T]) -> None:
        """Queue several items."""
        for item in items:
            self.append(item)

    def pop(self, owner: str) -> T:
        """Take an owner's first item; it is everyone else's turn before its next one."""
        items = self._items[owner]
        item = items.popleft()
        if items:
            self._items.move_to_end(owner)
        else:
            del self._items[owner]
        return item

    def remove(self, item: T) -> None:
        """Take an item out. Raises ValueError if it is not here."""
        owner = self._owner(item)
        if owner not in self._items:
            raise ValueError("the item is not in the queue")
        self._items[owner].remove(item)
        if not self._items[owner]:
            del self._items[owner]

    def clear(self) -> None:
        """Forget everything."""
        self._items.clear()


def has_room(waiting: int, own: int, more: int, most: int) -> bool:
    """Whether `more` items of one owner, who has `own` of the `waiting` ones, may be queued.

    A queue that others have filled still takes what little one asks for: up to a quarter of it for each.
    """
    return waiting + more <= most or own + more <= max(1, most // 4)
