"""Plans: what a guard comes to on a step, worked out once for all requests that have the same one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.api import Guard, Guarded, Reaction, RefusedByPolicyError, with_rows
from saegis_server.steering.admitted import AdmittedRows, Room
from saegis_server.steering.judge import Truths, judge_of
from saegis_server.steering.site import Site

#: How many programs with the rows of some conditions are kept.
_REMEMBERED = 256


class Plan:
    """A guard of C conditions over R readings, beside the program whose guards are read.

    judge: of its conditions. places: where each reading lies, the numbers of the sites and the rows of the
    guards there. edits and ends: bool [C], which conditions put rows in force, and which ones end a sequence.
    key: what plans have in common whose sequences are judged together.
    """

    def __init__(self, guard: Guard, program: Mapping[Site, AdmittedRows], room: Room) -> None:
        """`program` by site; readings are counted in the order of the room's sites."""
        self.conditions = guard.conditions
        self._program, self._room = dict(program), room
        found = tuple(
            (index, row)
            for index, site in enumerate(room.sites)
            if site in program
            for row in range(len(program[site].guards))
        )
        numbers, rows = np.array(found, dtype=np.intp).reshape(-1, 2).T
        self.readings, self.places = len(found), (numbers, rows)
        self.judge = judge_of(tuple(each.condition for each in self.conditions))
        self.edits = self.reacting(Reaction.EDIT)
        self.ends = self.reacting(Reaction.STOP, Reaction.REFUSE)
        self.key = (self.judge, tuple(each.reaction for each in self.conditions), found)
        self._variants: dict[frozenset[int], dict[Site, AdmittedRows]] = {}

    def reacting(self, *reactions: Reaction) -> Truths:
        """Which conditions have one of these reactions, bool [C]."""
        return np.array([each.reaction in reactions for each in self.conditions], dtype=np.bool_)

    def of_chunk(self, read: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """The readings [T, R] of the first T tokens of a chunk, whose readings are [sites, 1, Q, G]."""
        numbers, rows = self.places
        return np.ascontiguousarray(read[:, 0, :count][numbers, :, rows].T)

    def of_tokens(self, read: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """The readings [N, R] of some rows of a decode step, whose readings are [sites, B, 1, G]."""
        numbers, guards = self.places
        picked: NDArray[np.float32] = read[numbers, rows[:, None], 0, guards]
        return picked

    def program(self, on: Truths) -> dict[Site, AdmittedRows]:
        """The program with the rows of the conditions `on`, bool [C].

        Raises SteeringError where they cannot be in force together.
        """
        return self._with(np.flatnonzero(on).tolist())

    @property
    def everything(self) -> dict[Site, AdmittedRows]:
        """The program with the rows of all conditions that edit."""
        return self.program(self.edits)

    def refusal(self, holds: Truths, *reactions: Reaction) -> RefusedByPolicyError | None:
        """The refusal by the first condition that holds, bool [C], and has one of these reactions."""
        for each in self._among(holds & self.reacting(*reactions)):
            return RefusedByPolicyError(each.name, each.message or "the operator's policy refuses this text")
        return None

    def unsteerable(self, on: Truths) -> RefusedByPolicyError:
        """The refusal of a request whose rows cannot be put in force together."""
        names = ", ".join(each.name for each in self._among(on))
        return RefusedByPolicyError(names, "the rules that apply to this text cannot be applied together")

    def _among(self, chosen: Truths) -> Iterable[Guarded]:
        return (self.conditions[place] for place in np.flatnonzero(chosen).tolist())

    def _with(self, on: Iterable[int]) -> dict[Site, AdmittedRows]:
        key = frozenset(on)
        if (known := self._variants.get(key)) is not None:
            return known
        joined = with_rows(self._program, (self.conditions[place] for place in sorted(key)))
        program = self._program | self._room.admit(joined)
        if len(self._variants) >= _REMEMBERED:
            self._variants.clear()
        self._variants[key] = program
        return program
