"""The evaluator: which conditions hold at each token of a step, worked out on the device from what is read.

A condition is a gate over comparisons of readings and over other gates. A comparison over a window holds if
it held at any token of the window: the largest value there is above the threshold, or the least one below it.
So all that has to be remembered of a text is how many tokens ago each comparison held last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.conditions import (
    COMPARISONS_EACH,
    GATES_EACH,
    NEVER,
    CompiledConditions,
    Condition,
    ConditionError,
    Flag,
    compile_conditions,
)
from saegis_server.steering.tokens import Spread, Tokens


class ConditionRows(NamedTuple):
    """The conditions of every slot, of the readings' dtype: L comparisons, N gates, of which the first ones
    are conditions.

    comparisons [S, 5, L]: the number of the site, the row among its guards, 1 or −1 for above or below, the
    level, and how many tokens back it looks; weights [S, L, N] and between [S, N, N]: of comparisons and of
    gates in each gate, which holds where their sum and its bias [S, N] are above 0; flags [S, 6, N]: see
    Flag; guarded [S, 1]: whether a slot has guards, all of which must read numbers.
    """

    comparisons: Tensor
    weights: Tensor
    between: Tensor
    bias: Tensor
    flags: Tensor
    guarded: Tensor

    @classmethod
    def allocate(
        cls,
        slots: int,
        conditions: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ConditionRows:
        """Empty rows of `slots` slots with room for so many conditions; one more of each than there may be.

        dtype: that of the readings.
        """
        comparisons, gates = COMPARISONS_EACH * conditions + 1, GATES_EACH * conditions + 1
        flags = len(Flag._fields), gates
        shapes = (5, comparisons), (comparisons, gates), (gates, gates), (gates,), flags, (1,)
        return cls(*(torch.zeros(slots, *shape, device=device, dtype=dtype) for shape in shapes))

    def view(self, slots: int, comparisons: int, gates: int) -> ConditionRows:
        """The first comparisons and gates of the first slots."""
        return ConditionRows(
            self.comparisons[:slots, :, :comparisons],
            self.weights[:slots, :comparisons, :gates],
            self.between[:slots, :gates, :gates],
            self.bias[:slots, :gates],
            self.flags[:slots, :, :gates],
            self.guarded[:slots],
        )

    def write(self, slot: int, compiled: CompiledConditions) -> None:
        """Let an empty slot have these conditions."""
        for mine, new in zip(self, compiled.rows, strict=True):
            mine[slot][tuple(slice(size) for size in new.shape)] = _below(new, mine.dtype).to(mine.device)

    def clear(self, slot: int) -> None:
        """Let a slot have no condition."""
        for mine in self:
            mine[slot] = 0.0


class ConditionState(NamedTuple):
    """What is remembered of the text of every slot, and what came of its conditions.

    age: float32 [S, L], how many tokens ago each comparison held last. bool [S, N]: latched, what goes on
    holding; in_prompt, what held at any token of the prompt so far; carried, what held when the prompt was
    read before; holds, what holds at the last token that was judged. int64 [S, N]: held, at how many tokens
    each condition held; first, the position of the first one, or LATE.
    """

    age: Tensor
    latched: Tensor
    in_prompt: Tensor
    holds: Tensor
    held: Tensor
    first: Tensor
    carried: Tensor

    @classmethod
    def allocate(cls, slots: int, conditions: int, device: torch.device | str = "cpu") -> ConditionState:
        """The state of `slots` slots of which nothing has been read."""
        comparisons, gates = COMPARISONS_EACH * conditions + 1, GATES_EACH * conditions + 1
        latched, in_prompt, carried, holds = (
            torch.zeros(slots, gates, dtype=torch.bool, device=device) for _ in range(4)
        )
        counts = torch.zeros(slots, gates, dtype=torch.int64, device=device)
        age = torch.full((slots, comparisons), NEVER, device=device)
        first = torch.full_like(counts, LATE)
        return cls(age, latched, in_prompt, holds, counts, first, carried)

    def view(self, slots: int, comparisons: int, gates: int) -> ConditionState:
        """The first comparisons and gates of the first slots."""
        return ConditionState(self.age[:slots, :comparisons], *(each[:slots, :gates] for each in self[1:]))

    def begin(self, slot: int) -> None:
        """A text begins, of which nothing has been read."""
        self.age[slot], self.held[slot], self.first[slot] = NEVER, 0, LATE
        for truths in (self.latched, self.in_prompt, self.holds, self.carried):
            truths[slot] = False

    def read_again(self, slot: int, compiled: CompiledConditions) -> None:
        """A text is read again from its start, with what holds now in force from there."""
        holds = self.holds[slot].clone()
        self.begin(slot)
        self.carried[slot] = holds
        stays = compiled.flags.stays.to(holds.device)
        self.latched[slot, : len(stays)] = holds[: len(stays)] & stays


#: The position at which a condition held first that never did.
LATE = 2**40


class Where(NamedTuple):
    """Where T tokens are in their texts.

    position: int64 [T], counted from 0; answer: int64 [T or 1], where the answer begins; given: bool [T],
    which are tokens of a text at all; unread: int64 [T or 1], how many of a text's first tokens no condition
    reads.
    """

    position: Tensor
    answer: Tensor
    given: Tensor
    unread: Tensor


class Verdict(NamedTuple):
    """What conditions come to at T tokens, the state after each of them included.

    on: bool [T, 1 + N], whose rows are in force, the first for rows without a condition. holds, of those that
    are judged there, at the end of a prompt and at every token of an answer; latched, in_prompt: bool [T, N];
    age: float32 [T, L]. bool [T]: ends, whether one that holds ends the text; turns, whether a prompt is to
    be read again, under other rows; unreadable, whether a reading is no
    finite number.
    """

    on: Tensor
    holds: Tensor
    latched: Tensor
    in_prompt: Tensor
    age: Tensor
    ends: Tensor
    turns: Tensor
    unreadable: Tensor


def evaluate(read: Tensor, rows: ConditionRows, state: ConditionState, tokens: Tokens, at: Where) -> Verdict:
    """Which conditions hold at each token. read: float32 [T, sites, G], what the guards read there.

    A condition whose readings are not all there yet comes to anything. `rows` and `state` are of the tokens'
    slots. Over a prompt it is judged at its last token; there, rows are in force as `state.carried` says.
    """
    held = _compared(read, rows, tokens, at)
    ago, did = tokens.so_far(held)
    before = (tokens.own(state.age) + (tokens.nth + 1)).clamp(max=NEVER)
    age = torch.where(did, ago.to(before.dtype), before)
    readable = _readable(at)
    # What overflows is infinite or no number, as its sum happens to be taken: neither is a reading.
    odd = ~(read.abs() < torch.inf).flatten(1).all(-1)
    unreadable = odd & readable & (tokens.own(rows.guarded)[:, 0] > 0.0)
    truths = _truths(age < tokens.own(rows.comparisons[:, 4]), rows, tokens) & readable[:, None]
    flag = Flag(*(tokens.own(rows.flags) > 0.0).unbind(1))
    prompt, last = tokens.prompt[:, None], (at.position == at.answer - 1)[:, None]
    _, seen = tokens.so_far(truths & flag.of_token & prompt)
    in_prompt, carried = tokens.own(state.in_prompt) | seen, tokens.own(state.carried)
    whole = torch.where(flag.of_token, in_prompt, truths) | carried
    event = torch.where(prompt, whole & last & ~flag.of_answer, truths & ~flag.of_prompt)
    _, latches = tokens.so_far(event & flag.stays)
    latched = tokens.own(state.latched) | latches
    judged = (at.given & (~tokens.prompt | last[:, 0]))[:, None]
    holds = (event | latched) & judged
    wanted = torch.where(prompt, carried, holds) & flag.edits
    return Verdict(
        on=torch.cat((torch.ones_like(wanted[:, :1]), wanted), 1),
        holds=holds,
        latched=latched,
        in_prompt=in_prompt,
        age=age,
        ends=(holds & flag.ends).any(-1),
        turns=(prompt & judged & flag.edits & (holds != carried)).any(-1),
        unreadable=unreadable,
    )


def _readable(at: Where) -> Tensor:
    return at.given & (at.position >= at.unread)


def _compared(read: Tensor, rows: ConditionRows, tokens: Tokens, at: Where) -> Tensor:
    """Which comparisons hold at each token by itself, bool [T, L]."""
    site, row, sign, level, _ = tokens.own(rows.comparisons).unbind(1)
    place = (site * read.shape[2] + row).to(torch.int64).expand(len(read), -1)
    values = read.flatten(1).gather(1, place)
    return (values * sign > level) & (sign != 0.0) & _readable(at)[:, None]


def _truths(comparisons: Tensor, rows: ConditionRows, tokens: Tokens) -> Tensor:
    """Which gates hold, from which comparisons do: bool [T, L] → [T, N]."""
    direct = tokens.times(comparisons.to(rows.bias.dtype), rows.weights) + tokens.own(rows.bias)
    inner = (direct > 0.0).to(direct.dtype)  # right for gates that look at no other
    return direct + tokens.times(inner, rows.between) > 0.0


def _below(levels: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a dtype that are not above these: what is above the ones is above the others."""
    nearest = levels.to(dtype)
    lower = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.to(levels.dtype) > levels, lower, nearest)


class TextConditions:
    """The conditions of one text, evaluated here, for readings that are given as float64."""

    def __init__(self, conditions: tuple[Condition, ...], readings: int) -> None:
        """The text has so many readings at each token. Raises ConditionError."""
        none, places = (False,) * len(conditions), tuple((0, row) for row in range(readings))
        self._count, room = len(conditions), max(len(conditions), 1) * 64
        compiled = compile_conditions(conditions, none, none, places, room)
        self._rows = ConditionRows.allocate(1, room, dtype=torch.float64)
        self._rows.write(0, compiled)
        self._state, self._length = ConditionState.allocate(1, room), 0

    def read(self, values: Tensor, answer: int) -> Tensor:
        """Which conditions hold at each of the next T tokens, bool [T, C]; over a prompt only at its last
        one.

        values: float64 [T, R]; answer: where the answer begins, which may lie among them. Raises
        ConditionError for a reading that is no finite number.
        """
        position = torch.arange(self._length, self._length + len(values))
        tokens = Tokens(position < answer, Spread.ONE)
        nothing, begins = torch.zeros(1, dtype=torch.int64), torch.tensor([answer])
        at = Where(position, begins, torch.ones_like(tokens.prompt), nothing)
        verdict = evaluate(values[:, None], self._rows, self._state, tokens, at)
        if bool(verdict.unreadable.any()):
            raise ConditionError("a reading is no finite number")
        if len(values):
            new = verdict.age[-1:], verdict.latched[-1:], verdict.in_prompt[-1:]
            self._state = ConditionState(*new, *self._state[3:])
        self._length += len(values)
        return verdict.holds[:, : self._count]
