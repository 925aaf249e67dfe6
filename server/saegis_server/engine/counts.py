"""Counts: what an engine counts at a text's tokens, of rows that act in groups, of features that fire, and of
whole dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm, Phase, Probe
from saegis_server.steering.site import Site
from saegis_server.steering.table import Rows


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

    def within(self, phase: Phase) -> Acted:
        """The tokens of a phase alone: of a row that several things have in common, what one of them had that
        acts in this phase."""
        return Acted(
            self.prompt if phase is not Phase.COMPLETION else 0,
            self.answer if phase is not Phase.PROMPT else 0,
        )


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


class Dictionary(NamedTuple):
    """All features of an SAE, whose use is counted at a sample of the steps.

    name: tells it apart from the engine's others. rows: how each feature is read, in their order, as of one
    slot. norm: that of all of them. ranked: what tells which are active where that is decided by rank.
    """

    name: str
    site: Site
    rows: Rows
    norm: Norm
    ranked: RankedDictionary | None = None

    @property
    def features(self) -> int:
        """How many features it has."""
        return self.rows.vectors.shape[2]


@dataclass(frozen=True, slots=True, eq=False)
class Used:
    """How M features were used at the tokens that were sampled: of prompts, and of answers.

    tokens: int64 [2], how many tokens that were; fired: int64 [2, M], at how many of them a feature was
    active; total: float64 [2, M] and largest: float32 [2, M], of its values there, in feature units; last:
    float64 [2, M], when it was active last, in seconds since the epoch, 0 for never.
    """

    tokens: NDArray[np.int64]
    fired: NDArray[np.int64]
    total: NDArray[np.float64]
    largest: NDArray[np.float32]
    last: NDArray[np.float64]

    @classmethod
    def nothing(cls, features: int) -> Used:
        """Nothing, of so many features."""
        return cls(
            np.zeros(2, np.int64),
            np.zeros((2, features), np.int64),
            np.zeros((2, features), np.float64),
            np.zeros((2, features), np.float32),
            np.zeros((2, features), np.float64),
        )

    def __add__(self, other: Used) -> Used:
        return Used(
            self.tokens + other.tokens,
            self.fired + other.fired,
            self.total + other.total,
            np.maximum(self.largest, other.largest),
            np.maximum(self.last, other.last),
        )
