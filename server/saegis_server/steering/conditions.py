"""Conditions: expressions over guard readings, and over which tokens they are judged."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Over which tokens a condition is judged.

    PROMPT: once, when the whole prompt is read, over the largest value (for `below`: the least) of each
    reading at the prompt's tokens; as the prompt does not change, what held then goes on holding. WINDOW: at
    the end of the prompt and at every token of the answer, in the same way over the last `window` tokens,
    the prompt's among them. TOKEN: at every token by itself; in a prompt it holds if it holds at any of the
    tokens.
    """

    PROMPT = "prompt"
    WINDOW = "window"
    TOKEN = "token"  # noqa: S105 - no secret


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
