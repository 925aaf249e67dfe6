"""Counts: what an engine counts at a text's tokens, of rows that act in groups and of features that fire."""

from __future__ import annotations

from typing import NamedTuple

from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site


class RowName(NamedTuple):
    """Which row of a program is meant: its site, its stage (edits, rules or bans), the key of what it reads,
    and the number of its condition, 0 for none."""

    site: Site
    stage: str
    key: str
    when: int = 0


#: Rows that are counted together.
RowGroup = frozenset[RowName]


class Acted(NamedTuple):
    """At how many tokens of the prompt and of the answers any row of a group acted: asked for a change, or
    banned a feature that was active."""

    prompt: int
    answer: int


#: The bounds of how strongly an observed feature fires, as shares of its recorded maximum.
STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5)


class Observed(NamedTuple):
    """A feature that is read at every token of every text that is written. maximum: the largest value that is
    recorded for it, None if there is none."""

    site: Site
    probe: Probe
    maximum: float | None = None


class Fired(NamedTuple):
    """On how many tokens a feature was active, on how many its value was above each of STRENGTHS of its
    maximum, and the sum of these values over it; the latter are 0 without a maximum."""

    tokens: int
    above: tuple[int, ...]
    strength: float


#: What an observed feature did at the prompt's tokens and at those of the answers.
Firing = tuple[Fired, Fired]
