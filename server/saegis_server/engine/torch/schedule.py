"""The schedule: which sequences wait, which one's prompt is being read, which ones run, and in which slots.

Running sequences fill the slots 0 … R−1 without gaps, so that a decode step is the first rows of every
tensor; the one whose prompt is being read has the slot after them. A slot holds a whole sequence, so a
sequence that was admitted can always go on: there is nothing to run out of and no preemption.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator

from saegis_server.engine.torch.sequence import Sequence
from saegis_server.fair import FairQueue


class Schedule:
    """Waiting, reading and running sequences over a fixed number of slots.

    A slot goes to the tenant who holds the fewest; within a tenant its principals take turns. A few slots are
    kept free for tenants that had one lately and have none now, so that they need not wait until another
    tenant's long sequences end.
    """

    def __init__(
        self,
        slots: int,
        move: Callable[[int, int, int], None],
        clock: Callable[[], float] = time.monotonic,
        kept: int | None = None,
        kept_seconds: float = 60.0,
    ) -> None:
        """`move(source, target, length)` moves what a slot holds.

        kept: how many slots may be kept; by default an eighth, or one of few. kept_seconds: for how long one
        is kept for a tenant after its last sequence has left.
        """
        self.slots = slots
        self.waiting: FairQueue[Sequence] = FairQueue(
            lambda sequence: sequence.tenant, lambda sequence: sequence.principal
        )
        few = slots // 8 if slots >= 8 else int(slots >= 4)
        self._kept, self._kept_seconds = few if kept is None else kept, kept_seconds
        self._seen: dict[str, float] = {}
        self._clock = clock
        self.reading: Sequence | None = None
        self.running: list[Sequence] = []
        self._move = move

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.running)

    @property
    def used_tokens(self) -> int:
        """How many tokens the slots hold."""
        return sum(sequence.length for sequence in self.in_slots())

    def in_slots(self) -> Iterator[Sequence]:
        """The sequences that hold a slot."""
        yield from self.running
        if (reading := self.reading) is not None:  # read once: another thread may ask how full it is
            yield reading

    def every(self) -> Iterator[Sequence]:
        """Every sequence, running or not."""
        yield from self.in_slots()
        yield from self.waiting

    def admit(self) -> Sequence | None:
        """The sequence to read from: the one begun, or the next in the queue if there is a slot for it."""
        if self.reading is None and self.waiting and len(self.running) < self.slots:
            held = Counter(sequence.tenant for sequence in self.running)
            tenant = min(self.waiting.owners, key=held.__getitem__)
            if held[tenant] == 0 or self.slots - len(self.running) > self._kept_from(tenant, held):
                self.reading = self.waiting.pop(tenant)
                self.reading.slot = len(self.running)
                self._seen[tenant] = self._clock()
        return self.reading

    def _kept_from(self, tenant: str, held: Counter[str]) -> int:
        """How many slots are kept for others than `tenant`, of those who had one lately and have none."""
        lately = self._clock() - self._kept_seconds
        self._seen = {name: seen for name, seen in self._seen.items() if seen > lately or held[name]}
        return min(self._kept, sum(not held[name] for name in self._seen if name != tenant))

    def start_running(self) -> None:
        """The prompt has been read: decode from now on."""
        if self.reading is not None:
            self.running.append(self.reading)
            self.reading = None

    def remove(self, sequence: Sequence) -> int | None:
        """Take a sequence out; returns the slot that is empty now, None if it had none.

        The last running sequence moves into the gap, and the one being read follows.
        """
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        gap, sequence.slot = sequence.slot, -1
        self._seen[sequence.tenant] = self._clock()
        if sequence is self.reading:
            self.reading = None
            return gap
        last = self.running.pop()
        if last is not sequence:
            self.running[gap] = last
            gap = self._relocate(last, gap)
        return gap if self.reading is None else self._relocate(self.reading, gap)

    def clear(self) -> None:
        """Forget every sequence: the engine is at its end."""
        self.waiting.clear()
        self.running.clear()
        self.reading = None

    def _relocate(self, sequence: Sequence, target: int) -> int:
        source, sequence.slot = sequence.slot, target
        self._move(source, target, sequence.length)
        return source

    def check(self) -> None:
        """Check the books. Raises RuntimeError if a sequence is not where it should be."""
        slots = [sequence.slot for sequence in self.in_slots()]
        if slots != list(range(len(slots))) or len(slots) > self.slots:
            raise RuntimeError(f"sequences lie in slots {slots} of {self.slots}")
        if any(sequence.slot >= 0 for sequence in self.waiting):
            raise RuntimeError("a waiting sequence has a slot")
