"""Panels: the sequences whose guards are alike, judged together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.guard import Reaction
from saegis_server.engine.request_guard import NEVER, RequestGuard
from saegis_server.steering.judge import Standing, Truths

#: How many rows a panel begins with; it doubles when they are taken.
_FIRST_ROWS = 4
Rows = NDArray[np.intp]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(eq=False, slots=True)
class Seat:
    """A sequence's row in its panel; carried: bool [C], what held when its prompt was read before."""

    panel: Panel
    row: int
    carried: Truths


class Panel:
    """What is remembered of every sequence whose conditions, reactions and places of readings are the same.

    C conditions, R readings, a row for each sequence. on: bool [rows, C], whose rows are in force; held and
    first: int64 [rows, C], at how many tokens each condition held, and the first; peaks: float32 [rows, R].
    """

    def __init__(self, guard: RequestGuard) -> None:
        self.judge = guard.judge
        self._sites, self._columns = np.array(guard.places, dtype=np.intp).reshape(-1, 2).T
        self.edits = guard.reacting(Reaction.EDIT)
        self.ends = guard.reacting(Reaction.STOP, Reaction.REFUSE)
        self._free: list[int] = []
        self._size, self._taken = 0, 0
        self.standing = self.judge.start(0)
        self.on: Truths = self.standing.latched
        self.held: NDArray[np.int64] = np.zeros_like(self.on, dtype=np.int64)
        self.first: NDArray[np.int64] = np.zeros_like(self.on, dtype=np.int64)
        self.peaks: NDArray[np.float32] = np.zeros((0, len(guard.places)), dtype=np.float32)

    @staticmethod
    def key(guard: RequestGuard) -> object:
        """What guards of the same panel have in common."""
        return (tuple((each.condition, each.reaction) for each in guard.conditions), guard.places)

    @property
    def empty(self) -> bool:
        """Whether nobody has a seat."""
        return self._taken == 0

    def enter(self) -> Seat:
        """A seat for a sequence of which nothing has been read."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._taken += 1
        self.remember(row, self.judge.start())
        self.on[row], self.held[row], self.first[row], self.peaks[row] = False, 0, NEVER, -np.inf
        return Seat(self, row, np.zeros_like(self.on[row]))

    def leave(self, seat: Seat) -> None:
        """Give a seat back."""
        self._free.append(seat.row)
        self._taken -= 1

    def remember(self, rows: Rows | int, standing: Standing) -> None:
        """Put down the standing of some rows."""
        for all_rows, new in zip(self.standing, standing, strict=True):
            all_rows[rows] = new

    def count(self, rows: Rows | int, holds: Truths, token: NDArray[np.int64] | int) -> None:
        """Count what holds, bool [N, C], at the tokens of some rows, int64 [N, 1], counted in the answer."""
        if holds.any():
            self.held[rows] += holds
            self.first[rows] = np.where(holds, np.minimum(self.first[rows], token), self.first[rows])

    def of_tokens(self, read: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]:
        """The readings [N, R] of some rows of a decode step, whose readings are [sites, B, 1, K]."""
        picked: NDArray[np.float32] = read[self._sites, rows[:, None], 0, self._columns]
        return picked

    def _grow(self) -> None:
        more = max(self._size, _FIRST_ROWS)
        age, latched, in_prompt = self.standing
        self.standing = Standing(_longer(age, more), _longer(latched, more), _longer(in_prompt, more))
        self.on, self.held = _longer(self.on, more), _longer(self.held, more)
        self.first, self.peaks = _longer(self.first, more), _longer(self.peaks, more)
        self._free += range(self._size, self._size + more)
        self._size += more


def _longer(rows: NDArray[Kind], more: int) -> NDArray[Kind]:
    """The rows with as many empty ones behind them."""
    return np.concatenate((rows, np.zeros((more, *rows.shape[1:]), dtype=rows.dtype)))
