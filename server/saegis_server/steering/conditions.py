"""Conditions: expressions over guard readings, judged token by token for many sequences at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Over which tokens a condition is judged.

    PROMPT: once, when the whole prompt is read, over the largest value (for `below`: the least) of each
    reading at the prompt's tokens. WINDOW: at every step, in the same way over the last `window` tokens.
    TOKEN: at every token by itself; in a prompt it holds if it holds at any of the tokens.
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
    """An expression, over which tokens it is judged, and whether it goes on holding once it held."""

    expression: Expression
    scope: Scope = Scope.TOKEN
    window: int = 1
    sticky: bool = True
