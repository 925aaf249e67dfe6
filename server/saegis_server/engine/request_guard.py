"""The guard of a running request: which rows are in force when, and what its conditions came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.guard import Guard, Guarded, Reaction
from saegis_server.engine.requests import ConditionReceipt, Receipt, RefusedByPolicyError
from saegis_server.engine.sites import Site
from saegis_server.steering.judge import Judge, Truths, judge_of
from saegis_server.steering.program import SiteProgram

#: The token at which a condition held first, for one that never did.
NEVER = int(np.iinfo(np.int64).max)


class RequestGuard:
    """A guard of C conditions over R readings, beside the program whose guards are read."""

    def __init__(self, guard: Guard, program: Mapping[Site, SiteProgram], sites: Sequence[Site]) -> None:
        """`program` by site; `sites` are all of the step, in whose order readings are counted.

        Raises SiteError for rows at a site whose name is not understood.
        """
        self.conditions = guard.conditions
        self._program = dict(program)
        self._rows = [
            [(Site.parse(name), rows) for name, rows in each.rows.items()] for each in guard.conditions
        ]
        #: Where each reading lies: the number of its site, and its row in the table of watches there.
        self.places: tuple[tuple[int, int], ...] = tuple(
            (index, len(program[site].watches) + row)
            for index, site in enumerate(sites)
            if site in program
            for row in range(len(program[site].guards))
        )
        self._variants: dict[frozenset[int], dict[Site, SiteProgram]] = {frozenset(): self._program}
        self._held = np.zeros(len(guard.conditions), dtype=np.int64)
        self._first = np.full(len(guard.conditions), NEVER, dtype=np.int64)
        self._peaks = np.full(len(self.places), -np.inf, dtype=np.float32)

    @property
    def judge(self) -> Judge:
        """What judges its conditions."""
        return judge_of(tuple(each.condition for each in self.conditions))

    def reacting(self, *reactions: Reaction) -> Truths:
        """Which conditions have one of these reactions, bool [C]."""
        return np.array([each.reaction in reactions for each in self.conditions], dtype=np.bool_)

    def of_chunk(self, read: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """The readings [T, R] of the first T tokens of a chunk, whose readings are [sites, 1, Q, K]."""
        places = np.array(self.places, dtype=np.intp).reshape(-1, 2)
        return np.ascontiguousarray(read[:, 0, :count][places[:, 0], :, places[:, 1]].T)

    def program(self, on: Truths) -> dict[Site, SiteProgram]:
        """The program with the rows of the conditions `on`, bool [C]."""
        return self._with(np.flatnonzero(on).tolist())

    @property
    def everything(self) -> dict[Site, SiteProgram]:
        """The program with the rows of all conditions that edit."""
        return self.program(self.reacting(Reaction.EDIT))

    @property
    def came_in_force(self) -> dict[Site, SiteProgram]:
        """The program with the rows of those that held in any sequence that was added."""
        return self.program(self.reacting(Reaction.EDIT) & (self._held > 0))

    def refusal(self, holds: Truths, *reactions: Reaction) -> RefusedByPolicyError | None:
        """The refusal by the first condition that holds, bool [C], and has one of these reactions."""
        for each in self._among(holds & self.reacting(*reactions)):
            return RefusedByPolicyError(each.name, each.message or "the operator's policy refuses this text")
        return None

    def unsteerable(self, on: Truths) -> RefusedByPolicyError:
        """The refusal of a request whose rows cannot be put in force together."""
        names = ", ".join(each.name for each in self._among(on))
        return RefusedByPolicyError(names, "the rules that apply to this text cannot be applied together")

    def add(self, held: NDArray[np.int64], first: NDArray[np.int64], peaks: NDArray[np.float32]) -> None:
        """Add what came of one sequence: tokens at which each condition held, the first, the peaks [R]."""
        self._held += held
        self._first = np.minimum(self._first, first)
        self._peaks = np.maximum(self._peaks, peaks)

    def complete(self, receipt: Receipt) -> Receipt:
        """The receipt with what came of the conditions."""
        conditions = tuple(
            ConditionReceipt(each.name, held, None if first == NEVER else first)
            for each, held, first in zip(
                self.conditions, self._held.tolist(), self._first.tolist(), strict=True
            )
        )
        peaks = self._peaks.tolist() if (self._peaks > -np.inf).all() else ()  # if anything was read
        return replace(receipt, conditions=conditions, guard_peaks=tuple(peaks))

    def _among(self, chosen: Truths) -> Iterable[Guarded]:
        return (self.conditions[place] for place in np.flatnonzero(chosen).tolist())

    def _with(self, on: Iterable[int]) -> dict[Site, SiteProgram]:
        key = frozenset(on)
        if (known := self._variants.get(key)) is not None:
            return known
        program = dict(self._program)
        for place in sorted(key):
            for site, rows in self._rows[place]:
                own = program.get(site, SiteProgram())
                program[site] = replace(own, rules=own.rules + rows.rules, bans=own.bans + rows.bans)
        self._variants[key] = program
        return program
