"""Panels: the sequences whose guards are alike, judged together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.torch.plan import Plan
from saegis_server.engine.torch.request_guard import NEVER
from saegis_server.steering.judge import Standing, Truths

#: How many rows a panel begins with; it doubles when they are taken.
_FIRST_ROWS = 4
Rows = NDArray[np.intp]
Counts = NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(eq=False, slots=True)
class Seat:
    """A sequence's row in its panel. carried: bool [C], what held when its prompt was read before."""

    panel: Panel
    row: int
    carried: Truths


class Panel:
    """What is remembered of every sequence whose conditions, reactions and places of readings are the same.

    C conditions, R readings, a row for each sequence. on: bool [rows, C], whose rows are in force; held and
    first: int64 [rows, C], at how many tokens each condition held, and the first; peaks: float32 [rows, R],
    of what was read in steps of one sequence alone.

    A token that raises no alarm is quiet: what held at the one before it holds, and `catch_up` counts it.
    """

    def __init__(self, plan: Plan) -> None:
        """For all guards whose plans have the key of `plan`."""
        self.plan, self.judge = plan, plan.judge
        self._free: list[int] = []
        self._size, self._taken = 0, 0
        self.standing = self.judge.start(0)
        self.on: Truths = self.standing.latched
        self.held: NDArray[np.int64] = np.zeros_like(self.on, dtype=np.int64)
        self.first: NDArray[np.int64] = np.zeros_like(self.on, dtype=np.int64)
        self.peaks: NDArray[np.float32] = np.zeros((0, plan.readings), dtype=np.float32)
        # What held at the last token that was judged, and how many tokens the text had with it.
        self._holds: Truths = np.zeros_like(self.on)
        self._length: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

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
        self._holds[row], self._length[row] = False, NEVER
        return Seat(self, row, np.zeros_like(self.on[row]))

    def leave(self, seat: Seat) -> None:
        """Give a seat back."""
        self._free.append(seat.row)
        self._taken -= 1

    def remember(self, rows: Rows | int, standing: Standing) -> None:
        """Put down the standing of some rows."""
        for all_rows, new in zip(self.standing, standing, strict=True):
            all_rows[rows] = new

    def count(self, rows: Rows, holds: Truths, token: Counts, length: Counts) -> None:
        """Count what holds, bool [N, C], at the last tokens of some rows, which were judged.

        token: int64 [N], counted in the answer, -1 for a prompt; length: int64 [N], of the texts with them.
        """
        self._holds[rows], self._length[rows] = holds, length
        if holds.any():
            first = self.first[rows]
            self.held[rows] += holds
            self.first[rows] = np.where(holds, np.minimum(first, token[:, None]), first)

    def catch_up(self, rows: Rows, length: Counts) -> None:
        """Count the quiet tokens of some rows, whose texts have `length` tokens, int64 [N], by now."""
        quiet = np.maximum(length - self._length[rows], 0)
        if quiet.any():
            self.held[rows] += self._holds[rows] * quiet[:, None]
            self.remember(rows, self.judge.pass_by(self.standing.of(rows), quiet))
            self._length[rows] += quiet

    def _grow(self) -> None:
        more = max(self._size, _FIRST_ROWS)
        age, latched, in_prompt = self.standing
        self.standing = Standing(_longer(age, more), _longer(latched, more), _longer(in_prompt, more))
        self.on, self.held = _longer(self.on, more), _longer(self.held, more)
        self.first, self.peaks = _longer(self.first, more), _longer(self.peaks, more)
        self._holds, self._length = _longer(self._holds, more), _longer(self._length, more)
        self._free += range(self._size, self._size + more)
        self._size += more


def _longer(rows: NDArray[Kind], more: int) -> NDArray[Kind]:
    """The rows with as many empty ones behind them."""
    return np.concatenate((rows, np.zeros((more, *rows.shape[1:]), dtype=rows.dtype)))
