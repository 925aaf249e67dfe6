"""Combination: the rules of all policies that match a request, as one program and guard, in any order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from saegis_server.engine.admission import GuardError, admit
from saegis_server.engine.api import UNGUARDED, Guard, Guarded, Reaction
from saegis_server.engine.counts import RowName
from saegis_server.policy.decide.claims import (
    Claim,
    Merged,
    Owner,
    Place,
    SiteRows,
    contradictions,
    merge,
)
from saegis_server.policy.decide.compiled_rule import CompiledRule
from saegis_server.policy.decide.decision import AppliedRule
from saegis_server.policy.decide.selectors import Selected
from saegis_server.policy.decide.world import World
from saegis_server.policy.schema.policy import Mode, Transparency
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering import rows
from saegis_server.steering.operations import Op
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from saegis_server.steering.site import Site

log = logging.getLogger("saegis.policy")

_REACTIONS = {"stop": Reaction.STOP, "refuse": Reaction.REFUSE, "record": Reaction.RECORD}


@dataclass(frozen=True, slots=True, eq=False)
class StandingRule:
    """A rule as it applies to a request: with its policy and its mode."""

    policy: str
    rule: CompiledRule
    mode: Mode
    transparency: Transparency = Transparency.LABELS
    candidate: bool = False

    @property
    def owner(self) -> Owner:
        """Its policy and its id."""
        return self.policy, self.rule.id

    @property
    def enforced(self) -> bool:
        """Whether it acts."""
        return self.mode is Mode.ENFORCE

    def applied(self) -> AppliedRule:
        """The rule in the form that decisions and receipts have."""
        return AppliedRule(
            policy=self.policy,
            rule=self.rule.id,
            action=self.rule.action,
            mode=self.mode,
            transparency=self.transparency,
            reason=self.rule.reason,
            labels=self.rule.labels,
            conditional=self.rule.condition is not None,
            candidate=self.candidate,
            phase=self.rule.phase,
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """Rules that cannot be in force together, and the reason."""

    owners: tuple[Owner, ...]
    message: str


@dataclass(frozen=True, eq=False)
class Withheld:
    """What rules keep from the edits of requests, each with those rules.

    banned: what they ban. redirected: what they redirect. written: what they redirect to.
    """

    banned: Mapping[Place, tuple[Owner, ...]] = field(default_factory=dict)
    redirected: Mapping[Place, tuple[Owner, ...]] = field(default_factory=dict)
    written: Mapping[Place, tuple[Owner, ...]] = field(default_factory=dict)

    @classmethod
    def by(cls, standing: Iterable[StandingRule]) -> Self:
        """What these rules keep."""
        claims = [claim for rule in standing for claim in rule.rule.claims]
        redirects = [(claim, claim.to) for claim in claims if claim.to is not None]
        return cls(
            _owners((claim.target.key, claim) for claim in claims if claim.op is Op.BAN),
            _owners((claim.target.key, claim) for claim, _ in redirects),
            _owners((to.key, claim) for claim, to in redirects),
        )

    def taken(self) -> Iterator[tuple[Site, tuple[Owner, ...]]]:
        """The sites where something is banned or redirected, with the rules; a site may come again."""
        for by_place in (self.banned, self.redirected):
            for (site, _), owners in by_place.items():
                yield site, owners


@dataclass(frozen=True, eq=False)
class Combined:
    """The combined rules, whatever a request's own edits are. With faults there is no program.

    faults: why the rules cannot be evaluated. withheld: what the enforced rules keep from edits. recorded:
    the same of the rules that are only recorded. unbannable: the enforced rules that a ban would undo, by
    what they hold. program: rows and guard readings by site, in forward order. peaks, owners: see `Decision`.
    """

    faults: tuple[Fault, ...] = ()
    applied: tuple[AppliedRule, ...] = ()
    withheld: Withheld = Withheld()
    recorded: Withheld = Withheld()
    unbannable: Mapping[Place, tuple[Owner, ...]] = field(default_factory=dict)
    program: SteeringProgram = UNSTEERED
    guard: Guard = UNGUARDED
    peaks: tuple[tuple[int, str, str], ...] = ()
    owners: Mapping[RowName, tuple[Owner, ...]] = field(default_factory=dict)


def combine(standing: Iterable[StandingRule], world: World) -> Combined:
    """Everything that follows from the rules alone. The order of `standing` makes no difference."""
    ordered = sorted(standing, key=lambda rule: (rule.owner, rule.candidate))
    enforced = [rule for rule in ordered if rule.enforced]
    claims = [claim for rule in enforced for claim in rule.rule.claims]
    known = Combined(
        applied=tuple(rule.applied() for rule in ordered),
        withheld=Withheld.by(enforced),
        recorded=Withheld.by(rule for rule in ordered if not rule.enforced),
        unbannable=_owners((claim.target.key, claim) for claim in claims if claim.outlives_no_ban),
    )
    clashes = list(contradictions(claims))
    if clashes:
        faults = tuple(Fault((clash.first.owner, clash.second.owner), str(clash)) for clash in clashes)
        return replace(known, faults=faults)
    merged = merge(claims)
    layout = _Layout(ordered, world)
    guard = Guard(tuple(_guarded(ordered, merged, layout)))
    faults = tuple(_prove(merged, layout, guard, enforced, claims, world))
    if faults:
        return replace(known, faults=faults)
    return replace(
        known,
        program=_program(merged.always, layout, world),
        guard=guard,
        peaks=tuple(
            (layout.number(target), rule.applied().name, target.name)
            for rule in ordered
            if rule.rule.action == "watch" and rule not in layout.left_out
            for target in rule.rule.targets
        ),
        owners=_row_owners(claims),
    )


def _row_owners(claims: Sequence[Claim]) -> dict[RowName, tuple[Owner, ...]]:
    """The rules that each row would stand for that always acts. Where all bans of a probe have conditions, a
    request's own ban may make it one."""
    return {
        RowName(site, stage, key): owners
        for stage, bans in (("rules", False), ("bans", True))
        for (site, key), owners in _owners(
            (claim.target.key, claim) for claim in claims if (claim.op is Op.BAN) is bans
        ).items()
    }


def _owners(claims: Iterable[tuple[Place, Claim]]) -> dict[Place, tuple[Owner, ...]]:
    """The rules of each place, each once."""
    owners: dict[Place, dict[Owner, None]] = {}
    for place, claim in claims:
        owners.setdefault(place, {})[claim.owner] = None
    return {place: tuple(group) for place, group in owners.items()}


class _Layout:
    """The row of each reading: by site in forward order, then by key.

    Where there is no room, rules that are only recorded are left out: they must not change the decision.
    left_out: those rules.
    """

    def __init__(self, ordered: Sequence[StandingRule], world: World) -> None:
        self.left_out: list[StandingRule] = []
        self.by_site: dict[Site, dict[str, Selected]] = {site: {} for site in world.sites}
        for rule in sorted(ordered, key=lambda rule: not rule.enforced):
            by_site = {site: dict(readings) for site, readings in self.by_site.items()}
            for reading in readings_of(rule):
                by_site[reading.site].setdefault(reading.probe.key, reading)
            full = any(len(readings) > world.capacity.watches for readings in by_site.values())
            if full and not rule.enforced:
                self.left_out.append(rule)
                log.warning("rule %s is not recorded: no room for its readings", rule.applied().name)
            else:
                self.by_site = by_site
        self.by_site = {site: dict(sorted(readings.items())) for site, readings in self.by_site.items()}
        keys = [(site, key) for site, readings in self.by_site.items() for key in readings]
        self._numbers = {place: number for number, place in enumerate(keys)}

    def number(self, reading: Selected) -> int:
        return self._numbers[reading.key]


def readings_of(standing: StandingRule) -> tuple[Selected, ...]:
    """What is read for a rule: the readings of its condition, or the targets that it watches."""
    return standing.rule.targets if standing.rule.action == "watch" else standing.rule.readings


def _program(by_site: Mapping[Site, SiteRows], layout: _Layout, world: World) -> SteeringProgram:
    programs = {}
    for site in world.sites:
        own = by_site.get(site, SiteRows())
        guards = tuple(reading.probe for reading in layout.by_site[site].values())
        programs[site] = SiteProgram(rules=own.rules, bans=own.bans, guards=guards)
    return SteeringProgram({site: program for site, program in programs.items() if program != SiteProgram()})


def _guarded(ordered: Sequence[StandingRule], merged: Merged, layout: _Layout) -> Iterator[Guarded]:
    for rule in ordered:
        condition = None if rule in layout.left_out else rule.rule.renumbered(layout.number)
        if condition is None:
            continue
        by_site = merged.conditional.get(rule.owner, {}) if rule.enforced else {}
        rows_by_site = {site: SiteProgram(rules=own.rules, bans=own.bans) for site, own in by_site.items()}
        reaction = _REACTIONS.get(rule.rule.action, Reaction.EDIT if rows_by_site else Reaction.RECORD)
        yield Guarded(
            name=rule.applied().name,
            condition=condition,
            reaction=reaction if rule.enforced else Reaction.RECORD,
            message=rule.rule.message,
            rows=rows_by_site,
        )


def _prove(
    merged: Merged,
    layout: _Layout,
    guard: Guard,
    enforced: Sequence[StandingRule],
    claims: Sequence[Claim],
    world: World,
) -> Iterator[Fault]:
    """What keeps the rows from being in force, whichever of the conditions hold."""
    every = merged.all_on()
    try:
        program = _program(every, layout, world)
    except SteeringError as error:
        yield _fault(error, every, enforced, claims)
        return
    has_room = True
    for site, at_site in program.sites.items():
        try:
            world.capacity.check(site, at_site)
        except SteeringError as error:
            # The rows of this stage are too many together, so the error names none of them.
            crowded = SteeringError(str(error), site, tuple((stage, -1) for stage, _ in error.rows))
            yield _fault(crowded, every, enforced, claims)
            has_room = False
    try:
        if has_room:
            admit(_program(merged.always, layout, world), guard, world.room)
    except SteeringError as error:
        yield _fault(error, every, enforced, claims)
    except GuardError as error:
        named = (standing.owner for standing in enforced if standing.applied().name in error.names)
        yield Fault(tuple(named), error.description)


def _fault(
    error: SteeringError,
    every: Mapping[Site, SiteRows],
    enforced: Sequence[StandingRule],
    claims: Sequence[Claim],
) -> Fault:
    """A steering error with the rules that its rows came from; a row of −1 stands for all of them."""
    stages = {stage for stage, _ in error.rows}
    if stages & {"watches", "guards"}:
        readers = [
            rule for rule in enforced if any(reading.site == error.site for reading in readings_of(rule))
        ]
        return Fault(tuple(rule.owner for rule in readers), str(error))
    at_site = SiteRows() if error.site is None else every.get(error.site, SiteRows())
    edits = {stage: getattr(at_site, stage, ()) for stage in stages}
    named = [edits[stage][row].probe.key for stage, row in error.rows if 0 <= row < len(edits[stage])]
    owners = dict.fromkeys(
        claim.owner
        for claim in claims
        if claim.target.site == error.site
        and ("bans" if claim.op is Op.BAN else "rules") in stages
        and (not named or claim.target.probe.key in named)
    )
    return Fault(tuple(owners), str(error))


def with_edits(
    combined: Combined, edits: Sequence[RequestEdit], bound: float | None, world: World
) -> tuple[SteeringProgram, Guard]:
    """The program of the rules and a request's own edits, bans and watches, and the guard beside it. Both are
    still to be admitted.

    bound: the largest ‖Δx‖/‖x‖ that the edits may cause at a site. Where a feature is banned already, the
    greater strength counts: that of a ban with a condition too, which then has nothing left to add. Raises
    ValueError for an edit at a site that does not exist.
    """
    guard = combined.guard
    programs: dict[Site, SiteProgram] = dict(combined.program.sites)
    for edit in edits:
        at_site = programs.get(edit.site, SiteProgram())
        match edit.op:
            case Op.WATCH:
                at_site = replace(at_site, watches=(*at_site.watches, edit.edit.probe))
            case Op.BAN:
                guard, conditional = _without_ban(guard, edit.site, edit.edit.probe)
                bans = at_site.bans
                for ban in (edit.edit, *conditional):
                    bans = _with_ban(bans, ban)
                at_site = replace(at_site, bans=bans)
            case _:
                at_site = replace(at_site, edits=(*at_site.edits, edit.edit), max_relative_norm=bound)
        programs[edit.site] = at_site
    ordered = sorted(programs, key=world.sites.index)
    return replace(combined.program, sites={site: programs[site] for site in ordered}), guard


def _without_ban(guard: Guard, site: Site, probe: Probe) -> tuple[Guard, list[Edit]]:
    """A guard without its conditions' bans of a probe, and those bans."""
    conditions, bans = [], list[Edit]()
    for guarded in guard.conditions:
        at_site = guarded.rows.get(site, SiteProgram())
        others = tuple(ban for ban in at_site.bans if ban.probe.key != probe.key)
        if len(others) < len(at_site.bans):
            bans += (ban for ban in at_site.bans if ban.probe.key == probe.key)
            by_site = {**guarded.rows, site: replace(at_site, bans=others)}
            left = {place: program for place, program in by_site.items() if program != SiteProgram()}
            guarded = replace(guarded, rows=left, reaction=guarded.reaction if left else Reaction.RECORD)
        conditions.append(guarded)
    return replace(guard, conditions=tuple(conditions)), bans


def _with_ban(bans: tuple[Edit, ...], own: Edit) -> tuple[Edit, ...]:
    for place, ban in enumerate(bans):
        if ban.probe.key == own.probe.key:
            phase = ban.phase if ban.phase is own.phase else Phase.ALL
            joined = rows.ban(ban.probe, max(-ban.a, -own.a), phase=phase)
            return (*bans[:place], joined, *bans[place + 1 :])
    return (*bans, own)
