"""Guarding: what follows from the outcomes of conditions that the steps tell."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Sequenced
from typing import Protocol

from saegis_server.engine.api import (
    EngineError,
    FinishReason,
    NonFiniteLogitsError,
    Reaction,
    SteeringDivergedError,
)
from saegis_server.engine.torch.conditions import ConditionResult, Outcome
from saegis_server.engine.torch.sequence import Sequence
from saegis_server.engine.torch.step import StepOutput

#: How a condition ends a sequence, or fails its request.
Ending = FinishReason | EngineError


class Judged(Protocol):
    """The conditions of slots, as far as what follows from them is to be known."""

    def holds(self, slot: int) -> Sequenced[bool]:
        """Which conditions of a slot held at the last token at which they were judged."""

    def result(self, slot: int) -> ConditionResult:
        """What came of a slot's conditions so far, on the host."""


class GuardedSlots(Protocol):
    """Slots whose texts have conditions."""

    @property
    def conditions(self) -> Judged:
        """Theirs."""

    def read_again(self, slot: int) -> None:
        """Let the text of a slot be read again from its start, with what holds now in force from there."""


class Guarding:
    """Ends sequences, fails requests and has prompts read again as their conditions have it."""

    def __init__(self, slots: GuardedSlots) -> None:
        self._slots = slots

    def after_decode(self, sequences: list[Sequence], output: StepOutput) -> Mapping[int, Ending]:
        """How conditions end sequences; row i of the output is the i-th sequence's."""
        outcomes = zip(sequences, output.outcome.tolist(), output.finite.tolist(), strict=False)
        return {
            row: self.ending(sequence, Outcome(outcome), told=True)
            for row, (sequence, outcome, finite) in enumerate(outcomes)
            if outcome != Outcome.GOES_ON and finite
        }

    def after_chunk(self, sequence: Sequence, output: StepOutput) -> Ending | None:
        """How a condition ends a sequence at the next tokens of its prompt, or of what is given of its
        answer.

        Where further rows come in force, it is left with nothing read, to be read again with them.
        """
        outcome = Outcome(int(output.outcome[0]))
        if outcome is Outcome.GOES_ON:
            return None
        if outcome is Outcome.AGAIN:
            self._slots.read_again(sequence.slot)
            sequence.read = 0
            return None
        return self.ending(sequence, outcome, told=False)

    def leave(self, sequence: Sequence) -> None:
        """A sequence gives its slot back; what came of its conditions goes to its request."""
        if (guard := sequence.running.guard) is not None and sequence.loaded and sequence.slot >= 0:
            guard.add(self._slots.conditions.result(sequence.slot), sequence.answer_start)

    def steers(self, sequence: Sequence) -> bool:
        """Whether any row in force in a sequence's slot may change an activation."""
        guard = sequence.running.guard
        if guard is None:
            return sequence.rows.steer
        rows_by_site = guard.admitted.in_force(self._slots.conditions.holds(sequence.slot))
        return any(rows.changes_anything for rows in rows_by_site.values())

    def ending(self, sequence: Sequence, outcome: Outcome, told: bool) -> Ending:
        """How an outcome ends a sequence, or fails its request.

        told: whether any own token of the sequence was; what refuses a prompt then stops the answer."""
        if outcome is Outcome.UNREADABLE:
            what = "so its conditions cannot be judged"
            message = f"a guard's reading is no finite number at token {sequence.length}, {what}"
            return SteeringDivergedError(message) if self.steers(sequence) else NonFiniteLogitsError(message)
        guard = sequence.running.guard
        if guard is None:
            return FinishReason.CONTENT_FILTER
        holds = self._slots.conditions.holds(sequence.slot)
        refusal = None if told else guard.refusal(holds, Reaction.REFUSE)
        if refusal is None:
            guard.stops(holds)
        return refusal or FinishReason.CONTENT_FILTER
