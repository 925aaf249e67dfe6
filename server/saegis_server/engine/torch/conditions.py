"""Conditions of slots: their rows and what is remembered of each text, on the device, evaluated within the
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.conditions import CompiledConditions
from saegis_server.steering.evaluator import ConditionRows, ConditionState, Verdict, Where, evaluate
from saegis_server.steering.tokens import Tokens


class Outcome(IntEnum):
    """What conditions come to for a slot in a step: it goes on, it ends, its prompt is to be read again under
    other rows, or a reading is no finite number."""

    GOES_ON = 0
    ENDS = 1
    AGAIN = 2
    UNREADABLE = 3


class ConditionResult(NamedTuple):
    """What came of the C conditions over R readings of one text.

    held: int64 [C], at how many tokens each one held; first: int64 [C], the position of the first, or LATE;
    peaks: float32 [sites, G], the largest value of each reading.
    """

    held: Tensor
    first: Tensor
    peaks: Tensor

    @classmethod
    def of(cls, state: ConditionState, peaks: Tensor, slot: int) -> ConditionResult:
        """That of the text in a slot, on the host. peaks: float32 [sites, S, G]."""
        return cls(state.held[slot].cpu(), state.first[slot].cpu(), peaks[:, slot].cpu())


class SlotConditions:
    """The conditions of every slot, and what is remembered of each text. peaks: float32 [sites, S, G]."""

    def __init__(
        self, sites: int, slots: int, conditions: int, guards: int, device: torch.device | str
    ) -> None:
        """Room for so many conditions a slot, and for so many guards at each site."""
        self.rows = ConditionRows.allocate(slots, conditions, device)
        self.state = ConditionState.allocate(slots, conditions, device)
        self.peaks = torch.full((sites, slots, guards), -torch.inf, device=device)
        self._before = [torch.zeros_like(tensor) for tensor in (*self.state, self.peaks)]
        self._used: dict[int, CompiledConditions] = {}

    def load(self, slot: int, compiled: CompiledConditions | None) -> None:
        """Give a slot to a text of which nothing has been read."""
        self.clear(slot)
        self.state.begin(slot)
        self.peaks[:, slot] = -torch.inf
        if compiled is not None:
            self._used[slot] = compiled
            self.rows.write(slot, compiled)

    def clear(self, slot: int) -> None:
        """Let a slot have no conditions."""
        if self._used.pop(slot, None) is not None:
            self.rows.clear(slot)

    def read_again(self, slot: int) -> None:
        """Let the text of a slot be read again from its start, with what holds now in force from there."""
        self.state.read_again(slot, self._used[slot])

    def of(self, slot: Tensor, comparisons: int, gates: int) -> tuple[ConditionRows, ConditionState]:
        """Copies of what one slot has, an int64 [1], as that of a table of one."""
        slots = len(self.state.age)
        rows, state = self.rows.view(slots, comparisons, gates), self.state.view(slots, comparisons, gates)
        return (
            ConditionRows(*(tensor.index_select(0, slot) for tensor in rows)),
            ConditionState(*(tensor.index_select(0, slot) for tensor in state)),
        )

    def holds(self, slot: int) -> list[bool]:
        """Which conditions of a slot held at the last token at which they were judged."""
        holds: list[bool] = self.state.holds[slot].tolist()
        return holds

    def result(self, slot: int) -> ConditionResult:
        """What came of a slot's conditions so far, on the host."""
        return ConditionResult.of(self.state, self.peaks, slot)

    def move(self, source: int, target: int) -> None:
        """Let `target` hold what `source` holds."""
        self.clear(target)
        if (compiled := self._used.get(source)) is not None:
            self._used[target] = compiled
            for tensor in (*self.rows, *self.state):
                tensor[target] = tensor[source]
        else:
            self.state.begin(target)
        self.peaks[:, target] = self.peaks[:, source]

    def remember(self) -> None:
        """Keep what is remembered of all texts, in case the step that comes fails."""
        if not self._used:
            return
        for kept, now in zip(self._before, (*self.state, self.peaks), strict=True):
            kept.copy_(now)

    def rewind(self) -> None:
        """Go back to what was kept."""
        if not self._used:
            return
        for kept, now in zip(self._before, (*self.state, self.peaks), strict=True):
            now.copy_(kept)


@dataclass(slots=True)
class StepConditions:
    """The conditions of the tokens of one step: B slots of Q tokens each, as the compiled program sees them.

    rows, state: of those slots. sites: how many the step has, whose readings come one by one.
    """

    rows: ConditionRows
    state: ConditionState
    tokens: Tokens
    at: Where
    sites: int
    reads: dict[int, Tensor] = field(default_factory=dict)
    verdict: Verdict | None = None

    def read(self, site: int, guarded: Tensor) -> Tensor:
        """Take in what the guards of a site read, [T, G]; which conditions hold as far as is known by
        then.
        """
        self.reads[site] = guarded
        nothing = torch.zeros_like(guarded)
        every = torch.stack([self.reads.get(place, nothing) for place in range(self.sites)], 1)
        self.verdict = evaluate(every, self.rows, self.state, self.tokens, self.at)
        return self.verdict.on


class Settled(NamedTuple):
    """What B slots come to in a step. outcome: int64 [B], see Outcome; counted: bool [B, Q], the tokens up to
    the one that ended its text; state and peaks [sites, B, G] from then on.
    """

    outcome: Tensor
    counted: Tensor
    state: ConditionState
    peaks: Tensor


def settle(conditions: StepConditions, peaks: Tensor, given: Tensor, finite: Tensor) -> Settled:
    """What the conditions of B slots come to at the end of a step of Q tokens each.

    given: bool [B, Q], which are tokens of a text; peaks: float32 [sites, B, G], before the step; finite:
    bool [B], whether its logits are: where they are not, nothing is chosen and nothing counted. Where a slot
    has no token, its state stays.
    """
    verdict, old = conditions.verdict, conditions.state
    if verdict is None:
        return Settled(torch.zeros_like(given[:, 0], dtype=torch.int64), given, old, peaks)
    shape = given.shape
    by_slot = Verdict(*(part.reshape(*shape, *part.shape[1:]) for part in verdict))
    counted = given
    if shape[1] != 1:
        ended = by_slot.ends & given
        counted = given & (ended.cumsum(1) - ended.to(torch.int64) == 0)
    last = (counted.sum(1) - 1).clamp(min=0)[:, None, None]
    alive = counted.any(1, keepdim=True)

    def at_last(values: Tensor, before: Tensor) -> Tensor:
        own = values[:, 0] if shape[1] == 1 else values.gather(1, last.expand(-1, 1, values.shape[2]))[:, 0]
        return torch.where(alive, own, before)

    holds = by_slot.holds & (counted & finite[:, None])[:, :, None]
    position = conditions.at.position.reshape(*shape, 1)
    first = torch.where(holds, position, old.first[:, None]).amin(1)
    state = ConditionState(
        age=at_last(by_slot.age, old.age),
        latched=at_last(by_slot.latched, old.latched),
        in_prompt=at_last(by_slot.in_prompt, old.in_prompt),
        carried=old.carried,
        holds=at_last(by_slot.holds, old.holds),
        held=old.held + holds.sum(1),
        first=torch.minimum(old.first, first),
    )
    outcome = torch.where((by_slot.turns & counted).any(1), Outcome.AGAIN, Outcome.GOES_ON)
    outcome = torch.where((by_slot.ends & counted).any(1), Outcome.ENDS, outcome)
    outcome = torch.where((by_slot.unreadable & counted).any(1), Outcome.UNREADABLE, outcome)
    read = torch.stack([conditions.reads[site].reshape(*shape, -1) for site in range(conditions.sites)])
    seen = counted & (position[..., 0] >= conditions.at.unread)
    highest = torch.where(seen[None, :, :, None], read, -torch.inf).amax(2)
    return Settled(outcome, counted, state, torch.maximum(peaks, highest))
