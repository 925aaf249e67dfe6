"""The judge: many conditions compiled into a few array operations, for one text or for many at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saegis_server.steering.conditions import (
    AllOf,
    AnyOf,
    Condition,
    Expression,
    Literal,
    Negation,
    Scope,
    parts_of,
)

#: An age that no window reaches: of a literal that never held.
_NEVER = 2**40
#: The window of a literal over a whole prompt.
_PROMPT = 2**40

Values = NDArray[np.float32] | NDArray[np.float64]
Truths = NDArray[np.bool_]
#: What tells literals apart: reading, threshold, above, and how many tokens back it looks.
_Key = tuple[int, float, bool, int]


class UnreadableError(ValueError):
    """A reading is no number, so that no condition on it can be judged."""


class _Layer(NamedTuple):
    """Gates over all that was worked out before, [.., n] → [.., m]: true where weights·truths ≥ least."""

    weights: NDArray[np.float32]
    least: NDArray[np.float32]


class Standing(NamedTuple):
    """How N texts stand before their judge: what is remembered of the tokens read so far.

    age: int64 [N, L], how many tokens ago each literal held last; latched: bool [N, C], what holds for good;
    in_prompt: bool [N, C], what held at any token of the prompt so far. Never changed in place.
    """

    age: NDArray[np.int64]
    latched: Truths
    in_prompt: Truths

    def of(self, rows: NDArray[np.intp] | slice) -> Standing:
        """The standing of some of the texts."""
        return Standing(self.age[rows], self.latched[rows], self.in_prompt[rows])


class Quiet(NamedTuple):
    """What may come while N texts stand as they do: nothing new holds or ceases to hold.

    low, high: float32 [N, R], between which each reading lies, both included; tokens: int64 [N], at which of
    the next ones, counted from 1, a window has passed by what held in it.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    tokens: NDArray[np.int64]


class Judge:
    """Judges the conditions of one guard. Immutable, so that many texts may share it.

    A literal over a window holds if it held at any token of the window: its largest value there is above the
    threshold, or its least one below it. So all that is remembered is how long ago each literal held last.
    """

    def __init__(self, conditions: Sequence[Condition]) -> None:
        """Compile the conditions; C of them, R readings are looked at."""
        self.conditions = tuple(conditions)
        self.readings = 1 + max((max(each.readings) for each in self.conditions), default=-1)
        keys = list(
            dict.fromkeys(
                _key(part, _span(condition))
                for condition in self.conditions
                for part in parts_of(condition.expression)
                if isinstance(part, Literal)
            )
        )
        keys.sort(key=lambda key: key[0])
        self._reading = np.array([reading for reading, *_ in keys], dtype=np.intp)
        self._sign = np.array([1.0 if above else -1.0 for _, _, above, _ in keys])
        self._level = self._sign * np.array([threshold for _, threshold, *_ in keys])
        self._window = np.array([window for *_, window in keys], dtype=np.int64)
        self._bounds = _Bounds.of(keys)
        literals = {key: column for column, key in enumerate(keys)}
        self._layers, self._outputs = _Circuit(literals, self.conditions).compiled()
        self._columns = len(literals) + sum(layer.weights.shape[1] for layer in self._layers)
        scopes = [condition.scope for condition in self.conditions]
        self._of_token = np.array([scope is Scope.TOKEN for scope in scopes], dtype=np.bool_)
        self._of_prompt = np.array([scope is Scope.PROMPT for scope in scopes], dtype=np.bool_)
        sticky = np.array([condition.sticky for condition in self.conditions], dtype=np.bool_)
        self._stays = sticky | self._of_prompt

    def start(self, texts: int = 1) -> Standing:
        """The standing of texts of which nothing has been read."""
        nothing = np.zeros((texts, len(self.conditions)), dtype=np.bool_)
        return Standing(np.full((texts, len(self._window)), _NEVER), nothing, nothing)

    def latch(self, standing: Standing, holds: Truths) -> Standing:
        """The standing, with what `holds` [N, C] latched as far as it goes on holding."""
        return standing._replace(latched=standing.latched | (holds & self._stays))

    def read_prompt(self, standing: Standing, values: Values, last: bool = True) -> tuple[Truths, Standing]:
        """Read the next T tokens of one text's prompt, values [T, R], and judge it once the `last` are read.

        Returns what holds, bool [1, C], nothing before the last token, and the standing from then on. Raises
        UnreadableError for a value that is no number.
        """
        held, places = self._held(values), np.arange(len(values))[:, None]
        # The place of the token, counted from the first of these, at which each literal held last.
        latest = np.maximum.accumulate(np.where(held, places, -1 - standing.age), axis=0)
        ages = places - latest
        truths = self._truths(ages < self._window)
        in_prompt = standing.in_prompt | (truths.any(0, keepdims=True) & self._of_token)
        standing = Standing(ages[-1:], standing.latched, in_prompt)
        if not last:
            return np.zeros_like(in_prompt), standing
        holds = standing.latched | np.where(self._of_token, in_prompt, truths[-1:])
        return holds, self.latch(standing, holds)

    def read_tokens(self, standing: Standing, values: Values) -> tuple[Truths, Standing]:
        """Read the next token of each of N answers, values [N, R].

        Returns what holds, bool [N, C], and the standing from then on. Raises UnreadableError.
        """
        ages = np.where(self._held(values), 0, standing.age + 1)
        holds = standing.latched | (self._truths(ages < self._window) & ~self._of_prompt)
        return holds, self.latch(standing._replace(age=ages), holds)

    def quiet(self, standing: Standing) -> Quiet:
        """Within what the next tokens of N answers change nothing of what holds by their last ones.

        What held at another token of theirs, such as one of a prompt, must have been judged once since.
        """
        bounds, held = self._bounds, standing.age == 0
        low = np.full((len(held), self.readings), -np.inf, dtype=np.float32)
        high = -low
        if len(bounds.first):
            low[:, bounds.readings] = np.maximum.reduceat(
                np.where(held, bounds.held.low, bounds.unheld.low), bounds.first, axis=1
            )
            high[:, bounds.readings] = np.minimum.reduceat(
                np.where(held, bounds.held.high, bounds.unheld.high), bounds.first, axis=1
            )
        left = np.where(held | (standing.age >= self._window), _NEVER, self._window - standing.age)
        return Quiet(low, high, left.min(1, initial=_NEVER))

    def pass_by(self, standing: Standing, tokens: NDArray[np.int64]) -> Standing:
        """The standing of N answers some quiet tokens later, int64 [N]; see `quiet`."""
        return standing._replace(age=np.where(standing.age == 0, 0, standing.age + tokens[:, None]))

    def _held(self, values: Values) -> Truths:
        """Which literals hold at each of N tokens by itself: values [N, R] → [N, L]."""
        if values.shape[-1] < self.readings:
            raise UnreadableError(f"{values.shape[-1]} readings; the conditions look at {self.readings}")
        read = values[:, self._reading]
        if np.isnan(read).any():
            raise UnreadableError("a reading is no number")
        return np.asarray(read * self._sign > self._level)

    def _truths(self, literals: Truths) -> Truths:
        """The conditions' truth from the literals', [N, L] → [N, C]."""
        truths = np.empty((len(literals), self._columns), dtype=np.float32)
        truths[:, : literals.shape[1]] = literals
        for weights, least in self._layers:
            known, gates = weights.shape
            truths[:, known : known + gates] = truths[:, :known] @ weights >= least
        return truths[:, self._outputs] > 0.0


class _Reach(NamedTuple):
    """The least and the largest readings, float32 [L], with which literals hold, or do not."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]


class _Bounds(NamedTuple):
    """With what L literals hold, and with what not; those of each of `readings` begin at `first`."""

    held: _Reach
    unheld: _Reach
    readings: NDArray[np.intp]
    first: NDArray[np.intp]

    @classmethod
    def of(cls, keys: Sequence[_Key]) -> _Bounds:
        """The bounds of literals; those of whole prompts are free, for no answer can change them."""
        reading = np.array([reading for reading, *_ in keys], dtype=np.intp)
        level = np.array([threshold for _, threshold, *_ in keys])
        above = np.array([above for _, _, above, _ in keys], dtype=np.bool_)
        free = np.array([window == _PROMPT for *_, window in keys], dtype=np.bool_)
        least, most = np.float32(-np.inf), np.float32(np.inf)
        with np.errstate(over="ignore", under="ignore"):
            nearest = level.astype(np.float32)
            # The nearest float32 that are not over each threshold, and not under it; and the ones after them.
            under = np.where(nearest > level, np.nextafter(nearest, least), nearest)
            over = np.where(nearest < level, np.nextafter(nearest, most), nearest)
            beyond, beneath = np.nextafter(under, most), np.nextafter(over, least)
        held = _Reach(np.where(above, beyond, least), np.where(above, most, beneath))
        unheld = _Reach(np.where(above, least, over), np.where(above, under, most))
        for reach in (held, unheld):
            reach.low[free], reach.high[free] = least, most
        readings, first = np.unique(reading, return_index=True)
        return cls(held, unheld, readings.astype(np.intp), first.astype(np.intp))


@lru_cache(maxsize=256)
def judge_of(conditions: tuple[Condition, ...]) -> Judge:
    """The judge of these conditions, the same one for equal conditions."""
    return Judge(conditions)


class _Circuit:
    """Expressions as layers of gates: a gate of depth k looks at literals and at gates of less depth."""

    def __init__(self, literals: dict[_Key, int], conditions: Sequence[Condition]) -> None:
        self._literals, self._conditions = literals, conditions
        self._columns: dict[tuple[Expression, int], int] = {}
        self._by_depth: dict[int, dict[tuple[Expression, int], None]] = {}
        for condition in conditions:
            self._place(condition.expression, _span(condition))

    def _place(self, expression: Expression, span: int) -> int:
        """Put an expression's gates where they belong, and return its depth; 0 is a literal's."""
        if isinstance(expression, Literal):
            return 0
        depth = 1 + max(self._place(part, span) for part in _inputs(expression))
        self._by_depth.setdefault(depth, {})[expression, span] = None
        return depth

    def compiled(self) -> tuple[list[_Layer], NDArray[np.intp]]:
        """The layers, and at which column of what they give each condition's truth lies."""
        layers, known = [], len(self._literals)
        for depth in sorted(self._by_depth):
            gates = list(self._by_depth[depth])
            weights = np.zeros((known, len(gates)), dtype=np.float32)
            least = np.ones(len(gates), dtype=np.float32)
            for column, (expression, span) in enumerate(gates):
                inputs = {self._column(part, span) for part in _inputs(expression)}
                weights[list(inputs), column] = -1.0 if isinstance(expression, Negation) else 1.0
                if isinstance(expression, Negation):
                    least[column] = 0.0
                elif isinstance(expression, AllOf):
                    least[column] = len(inputs)
            self._columns.update({gate: known + column for column, gate in enumerate(gates)})
            layers.append(_Layer(weights, least))
            known += len(gates)
        found = [self._column(each.expression, _span(each)) for each in self._conditions]
        return layers, np.array(found, dtype=np.intp)

    def _column(self, expression: Expression, span: int) -> int:
        if isinstance(expression, Literal):
            return self._literals[_key(expression, span)]
        return self._columns[expression, span]


def _span(condition: Condition) -> int:
    """How many tokens back a condition's literals look, the token itself included."""
    if condition.scope is Scope.PROMPT:
        return _PROMPT
    return condition.window if condition.scope is Scope.WINDOW else 1


def _key(literal: Literal, span: int) -> _Key:
    return (literal.reading, literal.threshold, literal.above, span)


def _inputs(expression: Expression) -> tuple[Expression, ...]:
    if isinstance(expression, AllOf | AnyOf):
        return expression.parts
    return (expression.part,) if isinstance(expression, Negation) else ()
