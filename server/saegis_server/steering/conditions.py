"""Conditions: expressions over guard readings, over which tokens they are judged, and their rows of a table.

As rows they are gates over comparisons and over other gates: a sum of weights that is above 0 or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: An age that no window reaches: of a comparison that never held. A float32 counts so far without a gap.
NEVER = 2.0**24
#: How many comparisons and gates there is room for, for each condition that there is room for.
COMPARISONS_EACH, GATES_EACH = 4, 2
#: Into how many gates an expression of more than two levels may be spread.
_MOST_CHOICES = 1024


class Scope(StrEnum):
    """Over which tokens a condition is judged.

    PROMPT: once, when the whole prompt is read, over the largest value (for `below`: the least) of each
    reading at the prompt's tokens; as the prompt does not change, what held then goes on holding. WINDOW: at
    the end of the prompt and at every token of the answer, in the same way over the last `window` tokens,
    the prompt's among them. TOKEN: at every token by itself; in a prompt it holds if it holds at any of the
    tokens. ANSWER: at every token of the answer by itself, and never in a prompt: the tokens behind which a
    model begins to answer tell what was asked, not what is said.
    """

    PROMPT = "prompt"
    WINDOW = "window"
    TOKEN = "token"  # noqa: S105 - no secret
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Literal:
    """One reading against a threshold: above it, or with `above` False below it.

    reading: counts the rows of `SiteProgram.guards` over the program's sites, in the order of the forward
    pass. The value is that of the activation as it comes into the site, in feature units.
    """

    reading: int
    threshold: float
    above: bool = True


@dataclass(frozen=True, slots=True)
class AllOf:
    """Holds where every part holds."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Holds where at least one part holds."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Negation:
    """Holds where its part does not."""

    part: Expression


Expression = Literal | AllOf | AnyOf | Negation


@dataclass(frozen=True, slots=True)
class Condition:
    """An expression, over which tokens it is judged, and whether it goes on holding once it held.

    window: how many tokens WINDOW looks back, itself included; no other scope has one. Raises ValueError for
    what can never be judged: a threshold that is no finite number, nothing to join, no window.
    """

    expression: Expression
    scope: Scope = Scope.TOKEN
    window: int = 1
    sticky: bool = True

    def __post_init__(self) -> None:
        for part in parts_of(self.expression):
            if isinstance(part, Literal) and (part.reading < 0 or not math.isfinite(part.threshold)):
                raise ValueError(f"reading {part.reading} against {part.threshold} cannot be judged")
            if isinstance(part, AllOf | AnyOf) and not part.parts:
                raise ValueError("a condition joins nothing")
        if self.window < 1 or (self.window > 1 and self.scope is not Scope.WINDOW):
            raise ValueError(f"a condition over {self.scope} cannot have a window of {self.window}")

    @property
    def readings(self) -> frozenset[int]:
        """The readings that it looks at."""
        return frozenset(part.reading for part in parts_of(self.expression) if isinstance(part, Literal))


def parts_of(expression: Expression) -> Iterator[Expression]:
    """An expression and all that it is made of, the parts before the whole."""
    match expression:
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from parts_of(part)
        case Negation(part):
            yield from parts_of(part)
    yield expression


class ConditionError(ValueError):
    """Conditions that cannot be evaluated, and why."""


class Flag(NamedTuple):
    """What is to be known of each gate that is a condition, [.., N] each; 0 or 1."""

    of_token: Tensor
    of_prompt: Tensor
    of_answer: Tensor
    stays: Tensor
    edits: Tensor
    ends: Tensor


@dataclass(frozen=True, eq=False)
class CompiledConditions:
    """Conditions as rows of a table, on the host, for the places of their readings: immutable.

    rows: float64, as ConditionRows has them for one slot, of so many comparisons and gates.
    """

    conditions: tuple[Condition, ...]
    rows: tuple[Tensor, ...]
    comparisons: int
    gates: int

    @property
    def flags(self) -> Flag:
        """What is to be known of each gate, bool [N] each."""
        return Flag(*(self.rows[4] > 0.0).unbind(0))


#: What tells comparisons apart: reading, threshold, above, and how many tokens back it looks.
_Comparison = tuple[int, float, bool, float]
#: What a gate looks at: a comparison or another gate, and whether it must not hold.
_Input = tuple["_Comparison | _Gate", bool]


class _Gate(NamedTuple):
    """All or any of what it looks at."""

    every: bool
    inputs: tuple[_Input, ...]


@lru_cache(maxsize=256)
def compile_conditions(
    conditions: tuple[Condition, ...],
    edits: tuple[bool, ...],
    ends: tuple[bool, ...],
    places: tuple[tuple[int, int], ...],
    room: int,
) -> CompiledConditions:
    """The rows of conditions. edits, ends: whether each one puts rows in force, and whether it ends a text.

    places: the site's number and the row there of each reading; room: for how many conditions. Raises
    ConditionError for what there is no room for, for expressions of too many levels, and for readings that
    are none.
    """
    gates = [_gate(condition.expression, _span(condition)) for condition in conditions]
    numbered = _numbered(gates)
    looked_at = (part for gate in numbered for part, _ in gate.inputs)
    comparisons = list(dict.fromkeys(part for part in looked_at if not isinstance(part, _Gate)))
    _check(conditions, gates, numbered, comparisons, len(places), room)
    count, size = len(comparisons), len(conditions)
    table = np.zeros((5, count), dtype=np.float64)
    for column, (reading, threshold, above, window) in enumerate(comparisons):
        sign = 1.0 if above else -1.0
        table[:, column] = (*places[reading], sign, sign * threshold, window)
    # Conditions come first, one gate each even where they are alike; then the gates that they look at.
    inner = [gate for gate in numbered if gate not in gates]
    columns = {gate: column for column, gate in reversed(list(enumerate([*gates, *inner])))}
    weights = np.zeros((count, size + len(inner)), dtype=np.float64)
    between = np.zeros((size + len(inner), size + len(inner)), dtype=np.float64)
    bias = np.zeros(size + len(inner), dtype=np.float64)
    known = {comparison: row for row, comparison in enumerate(comparisons)}
    for column, gate in enumerate([*gates, *inner]):
        for part, negated in gate.inputs:
            target, row = (between, columns[part]) if isinstance(part, _Gate) else (weights, known[part])
            target[row, column] += -1.0 if negated else 1.0
        forbidden = sum(negated for _, negated in gate.inputs)
        bias[column] = 0.5 - (len(gate.inputs) - forbidden) if gate.every else forbidden - 0.5
    flags = np.zeros((len(Flag._fields), size + len(inner)), dtype=np.float64)
    for column, condition in enumerate(conditions):
        stays = condition.sticky or condition.scope is Scope.PROMPT
        scope = [condition.scope is each for each in (Scope.TOKEN, Scope.PROMPT, Scope.ANSWER)]
        flags[:, column] = (*scope, stays, edits[column], ends[column])
    rows = tuple(torch.from_numpy(array) for array in (table, weights, between, bias, flags, np.ones(1)))
    return CompiledConditions(conditions, rows, count, size + len(inner))


def _check(
    conditions: Sequence[Condition],
    gates: Sequence[_Gate],
    numbered: Sequence[_Gate],
    comparisons: Sequence[_Comparison],
    readings: int,
    room: int,
) -> None:
    beyond = [place for place, each in enumerate(conditions) if max(each.readings, default=-1) >= readings]
    if beyond:
        reading = max(conditions[beyond[0]].readings)
        raise ConditionError(f"condition {beyond[0]} looks at reading {reading}; there are {readings}")
    wanted = {
        "conditions": (len(conditions), room),
        "comparisons of conditions": (len(comparisons), COMPARISONS_EACH * room),
        "joins of conditions": (len(conditions) + len(set(numbered) - set(gates)), GATES_EACH * room),
    }
    for kind, (count, most) in wanted.items():
        if count > most:
            more = -(-count * room // most)
            raise ConditionError(
                f"{count} {kind}; this server has room for {most} "
                f"(its operator makes more with saegis serve --rows conditions={more})"
            )


def _numbered(gates: Iterable[_Gate]) -> list[_Gate]:
    """Gates and all that they look at, each once."""
    found: dict[_Gate, None] = {}
    for gate in gates:
        found[gate] = None
        found.update(dict.fromkeys(_numbered(part for part, _ in gate.inputs if isinstance(part, _Gate))))
    return list(found)


def _gate(expression: Expression, span: float) -> _Gate:
    """An expression as a gate over comparisons that look `span` tokens back, or over gates of comparisons."""
    part, negated = _input(expression, span, False)
    return _two_levels(part) if isinstance(part, _Gate) else _Gate(True, ((part, negated),))


def _two_levels(gate: _Gate) -> _Gate:
    """The same gate over comparisons and over gates of comparisons alone.

    What is any of some alls is all of the anys that take one from each. Raises ConditionError if that is too
    much.
    """
    inputs: dict[_Input, None] = {}
    for part, negated in gate.inputs:
        if not isinstance(part, _Gate) or not any(isinstance(inner, _Gate) for inner, _ in part.inputs):
            inputs[part, negated] = None
            continue
        flat = _two_levels(part)
        choices = [inner.inputs if isinstance(inner, _Gate) else ((inner, no),) for inner, no in flat.inputs]
        if math.prod(map(len, choices)) > _MOST_CHOICES:
            raise ConditionError("a condition has too many levels of all and any within each other")
        for chosen in product(*choices):
            inputs[_Gate(flat.every, tuple(dict.fromkeys(chosen))), False] = None
    return _Gate(gate.every, tuple(inputs))


def _input(expression: Expression, span: float, negated: bool) -> _Input:
    """An expression, or with `negated` its opposite, with joins of one kind within each other as one."""
    if isinstance(expression, Negation):
        return _input(expression.part, span, not negated)
    if isinstance(expression, Literal):
        return (expression.reading, expression.threshold, expression.above, span), negated
    every = isinstance(expression, AllOf) is not negated
    inputs: list[_Input] = []
    for part in expression.parts:
        made, opposite = _input(part, span, negated)
        if isinstance(made, _Gate) and made.every is every:
            inputs += made.inputs
        else:
            inputs.append((made, opposite))
    return inputs[0] if len(inputs) == 1 else (_Gate(every, tuple(inputs)), False)


def _span(condition: Condition) -> float:
    """How many tokens back a condition's comparisons look."""
    if condition.scope is Scope.PROMPT:
        return NEVER
    return min(float(condition.window), NEVER) if condition.scope is Scope.WINDOW else 1.0
