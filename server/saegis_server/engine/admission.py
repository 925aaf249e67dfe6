"""Admission: a program beside a guard, checked once against what an engine has room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from saegis_server.engine.api import FieldError, Guard, Guarded, Reaction
from saegis_server.steering.admitted import AdmittedRows, Room
from saegis_server.steering.conditions import CompiledConditions, ConditionError, Scope, compile_conditions
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.site import Site


@dataclass(frozen=True, eq=False)
class AdmittedProgram:
    """A program beside a guard that an engine with a room can run as it is.

    rows: by site, those of the conditions among them, with the geometry of what they hold. compiled: the
    conditions as rows of a table; None where nothing is read for any. readings: of each reading, in the order
    of Literal.reading, the number of its site in the room and its row there. digest: of all that may act.
    """

    program: SteeringProgram
    guard: Guard
    rows: Mapping[Site, AdmittedRows]
    digest: str
    compiled: CompiledConditions | None = None
    readings: tuple[tuple[int, int], ...] = ()

    def in_force(self, holds: Iterable[int]) -> dict[Site, SiteProgram]:
        """The rows without a condition and those whose condition holds; `holds` has a truth for each of
        them.
        """
        held = {0, *(number for number, truth in enumerate(holds, start=1) if truth)}
        rows_by_site = {}
        for site, rows in self.rows.items():
            rules, bans = (
                tuple(row for row in stage if row.when in held) for stage in (rows.rules, rows.bans)
            )
            own = SiteProgram(rows.edits, rules, bans, rows.watches, rows.guards, rows.max_relative_norm)
            if own != SiteProgram():
                rows_by_site[site] = own
        return rows_by_site


class GuardError(FieldError):
    """Conditions of a guard that cannot be beside a program; `names` are theirs."""

    def __init__(self, field: str, description: str, names: tuple[str, ...]) -> None:
        super().__init__(field, description)
        self.names = names


class _Asked:
    """What is to be admitted as the key of a cache: equal where the same may act in the same room."""

    def __init__(self, program: SteeringProgram, guard: Guard, room: Room) -> None:
        self.program, self.guard, self.room = program, guard, room
        self.digest = guard.digest_beside(program)
        # Watches are told in the order of the program's sites.
        self._key = (self.digest, tuple(program.sites), room)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self._key == other._key


def admit(program: SteeringProgram, guard: Guard, room: Room) -> AdmittedProgram:
    """Check a program beside a guard once: that there is room for its rows, and that what they hold can be
    held, with the rows of all conditions too.

    What was not seen before takes milliseconds where it bans. Raises SteeringError, and GuardError for a
    guard that does not fit the program.
    """
    return _admitted(_Asked(program, guard, room))


@lru_cache(maxsize=64)
def _admitted(asked: _Asked) -> AdmittedProgram:
    program, guard, room = asked.program, asked.guard, asked.room
    rows = room.admit({**program.sites, **_with_conditional(program.sites, guard)})
    sites = [site for site in room.sites if site in rows for _ in rows[site].guards]
    for place, guarded in enumerate(guard.conditions):
        if fault := _fault(guarded, sites, room):
            raise GuardError(f"guard.conditions[{place}]", fault, (guarded.name,))
    admitted = AdmittedProgram(program, guard, rows, asked.digest)
    return _compiled(admitted, room) if sites or guard.conditions else admitted


def _fault(guarded: Guarded, sites: list[Site], room: Room) -> str:
    """Why a condition does not fit a program whose readings are at these sites; empty if it does."""
    name, condition = guarded.name, guarded.condition
    if beyond := [reading for reading in condition.readings if reading >= len(sites)]:
        return f"{name} looks at reading {min(beyond)}; the program has {len(sites)} guards"
    if bool(guarded.rows) is not (guarded.reaction is Reaction.EDIT):
        has = "rows" if guarded.rows else "no rows"
        return f"{name} has {has}; its reaction is {guarded.reaction}"
    acts = [room.sites.index(site) for site in guarded.rows if site in room.sites]
    reads = [room.sites.index(sites[reading]) for reading in condition.readings]
    if acts and reads and condition.scope is not Scope.PROMPT and min(acts) < max(reads):
        first, last = room.sites[min(acts)], room.sites[max(reads)]
        return (
            f"{name} acts at {first}, which comes before {last}, where its condition reads: let it read "
            "there or earlier, act there or later, or be over the prompt"
        )
    return ""


def _with_conditional(program: Mapping[Site, SiteProgram], guard: Guard) -> dict[Site, SiteProgram]:
    """The sites at which conditions have rows, with all rows there, each with its condition."""
    rows_by_site: dict[Site, SiteProgram] = {}
    for number, guarded in enumerate(guard.conditions, start=1):
        for site, rows in guarded.rows.items():
            own = rows_by_site.get(site) or program.get(site, SiteProgram())
            rules, bans = (
                tuple(replace(row, when=number) for row in stage) for stage in (rows.rules, rows.bans)
            )
            rows_by_site[site] = replace(own, rules=own.rules + rules, bans=own.bans + bans)
    return rows_by_site


def _compiled(admitted: AdmittedProgram, room: Room) -> AdmittedProgram:
    readings = tuple(
        (number, row)
        for number, site in enumerate(room.sites)
        if site in admitted.rows
        for row in range(len(admitted.rows[site].guards))
    )
    reactions = [guarded.reaction for guarded in admitted.guard.conditions]
    try:
        compiled = compile_conditions(
            tuple(guarded.condition for guarded in admitted.guard.conditions),
            tuple(reaction is Reaction.EDIT for reaction in reactions),
            tuple(reaction in (Reaction.STOP, Reaction.REFUSE) for reaction in reactions),
            readings,
            room.capacity.conditions,
        )
    except ConditionError as error:
        names = tuple(guarded.name for guarded in admitted.guard.conditions)
        raise GuardError("guard.conditions", str(error), names) from None
    return replace(admitted, compiled=compiled, readings=readings)
