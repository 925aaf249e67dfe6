"""Seats: which sequences wait and which ones are in vLLM, each with a slot that stays its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from saegis_server.engine.torch.schedule import Schedule
from saegis_server.engine.torch.sequence import Sequence


class Seats(Schedule):
    """Waiting and running sequences, with the fairness of `Schedule`.

    vLLM itself decides which of those in it run at a step, in which order and in what part of a prompt; it is
    given no more of them than there are slots, so that its own queue stays empty and nobody is overtaken
    there. A slot is kept until its sequence leaves: nothing moves.
    """

    def __init__(
        self,
        slots: int,
        clock: Callable[[], float] = time.monotonic,
        kept: int | None = None,
        kept_seconds: float = 60.0,
    ) -> None:
        """`slots`: how many sequences run at once; the rest as for `Schedule`."""
        super().__init__(slots, _stays, clock, kept, kept_seconds)
        self._free = list(reversed(range(slots)))

    def take(self) -> Sequence | None:
        """The next sequence of the queue, in a slot of its own; None where none may run now."""
        if (sequence := self.admit()) is not None:
            sequence.slot = self._free.pop()
            self.start_running()
        return sequence

    def remove(self, sequence: Sequence) -> int | None:
        """Take a sequence out; returns the slot that is empty now, None if it had none."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        slot, sequence.slot = sequence.slot, -1
        self._seen[sequence.tenant] = self._clock()
        self.running.remove(sequence)
        self._free.append(slot)
        return slot

    def clear(self) -> None:
        """Forget every sequence: the engine is at its end."""
        super().clear()
        self._free = list(reversed(range(self.slots)))

    def check(self) -> None:
        """Check the books. Raises RuntimeError if a slot is two sequences' or nobody's."""
        slots = sorted([*self._free, *(sequence.slot for sequence in self.running)])
        if slots != list(range(self.slots)):
            raise RuntimeError(f"the slots that are free or taken are {slots}, of {self.slots}")


def _stays(source: int, target: int, length: int) -> None:
    raise RuntimeError(f"nothing moves from slot {source} to {target}")
