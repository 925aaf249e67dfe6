"""Claims: what rules require of one probe, which claims contradict each other, and the rows they become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from saegis_server.policy.decide.selectors import Selected
from saegis_server.steering import rows
from saegis_server.steering.operations import Op
from saegis_server.steering.rows import Edit, Phase, Redirection
from saegis_server.steering.site import Site

#: A site and the key of a probe at it.
Place = tuple[Site, str]
#: The name of a policy and the id of one of its rules.
Owner = tuple[str, str]


#: Operations that change a value only beyond a bound.
_BOUNDS = frozenset((Op.CAP, Op.FLOOR))
#: Operations that leave nothing of what another row writes along their own.
_TAKES_BACK = frozenset((Op.BAN, Op.CLAMP, Op.CLAMP_IF_ACTIVE))


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What one rule requires of one feature or direction.

    value: a ban's strength, the factor of a scale or a redirect or, for other operations, the value in
    feature units or, if `relative`, as a fraction of ‖x‖. conditional: it acts only while a condition holds.
    to, redirection: of a redirect, what it writes, and how, in feature units.
    """

    owner: Owner
    target: Selected
    op: Op
    value: float
    relative: bool = False
    phase: Phase = Phase.ALL
    conditional: bool = False
    to: Selected | None = None
    redirection: Redirection | None = None

    @property
    def name(self) -> str:
        """ "policy/rule"."""
        return "/".join(self.owner)

    def acts_in(self, phase: Phase) -> bool:
        """Whether it concerns any token of a phase."""
        return Phase.ALL in (self.phase, phase) or self.phase is phase

    @property
    def outlives_no_ban(self) -> bool:
        """Whether a ban of the same probe would undo it, since it may hold a value other than 0."""
        if self.op is Op.CAP:
            return self.target.probe.linear
        return self.op in (Op.FLOOR, Op.CLAMP)

    def same_effect(self, other: Claim) -> bool:
        """Whether both claims do the same where they act."""
        return self._numbers() == other._numbers()

    def _numbers(self) -> tuple[object, ...]:
        to = self.redirection
        further = () if to is None else (to.target.key, to.strength, to.threshold)
        return self.op, self.value, self.relative, *further


@dataclass(frozen=True, slots=True, eq=False)
class Contradiction:
    """Two claims that cannot both be met, and the reason. They meet on what the first one is about."""

    first: Claim
    second: Claim
    reason: str

    def __str__(self) -> str:
        names = f"{self.first.name} and {self.second.name}"
        return f"{names} contradict each other on {self.first.target.name}: {self.reason}"


@dataclass(frozen=True)
class SiteRows:
    """The rows of one site, in the stage of rules and in the stage of bans."""

    rules: tuple[Edit, ...] = ()
    bans: tuple[Edit, ...] = ()


@dataclass(frozen=True)
class Merged:
    """Claims as rows, by site: those that always act, and those of each rule with a condition."""

    always: Mapping[Site, SiteRows] = field(default_factory=dict)
    conditional: Mapping[Owner, Mapping[Site, SiteRows]] = field(default_factory=dict)

    def all_on(self) -> Mapping[Site, SiteRows]:
        """All rows together, as if every condition held."""
        together: dict[Site, SiteRows] = dict(self.always)
        for by_site in self.conditional.values():
            for site, more in by_site.items():
                have = together.get(site, SiteRows())
                together[site] = SiteRows(have.rules + more.rules, have.bans + more.bans)
        return together


def by_place(claims: Iterable[Claim]) -> dict[Place, list[Claim]]:
    """Claims by their site and probe."""
    groups: dict[Place, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(claim.target.key, []).append(claim)
    return groups


def contradictions(claims: Iterable[Claim]) -> Iterator[Contradiction]:
    """Every pair of claims that contradict each other. Two bans never do.

    Each pair is judged by itself, so that a further claim never resolves a contradiction.
    """
    places = by_place(claims)
    for group in places.values():
        rules = sorted((claim for claim in group if claim.op is not Op.BAN), key=lambda claim: claim.owner)
        for first, second in combinations(rules, 2):
            if first.acts_in(second.phase) and (reason := _why_not(first, second)):
                yield Contradiction(first, second, reason)
        for redirect in (claim for claim in group if claim.to is not None):
            yield from _undone(redirect, places)


def _undone(redirect: Claim, places: Mapping[Place, Sequence[Claim]]) -> Iterator[Contradiction]:
    """The claims that would take back what a redirect writes: bans and clamps of its target."""
    target = None if redirect.to is None else places.get(redirect.to.key)
    for claim in target or ():
        if claim.acts_in(redirect.phase) and claim.op in _TAKES_BACK:
            verb = "bans" if claim.op is Op.BAN else "holds at a value"
            yield Contradiction(claim, redirect, f"the first {verb} what the second redirects to")


def _why_not(first: Claim, second: Claim) -> str:
    """Why two claims of the same probe at the same tokens cannot both be met; empty if they can."""
    if first.conditional and second.conditional:
        return "both have a condition, and while both hold their changes would add up"
    pair, ops = (first, second), {first.op, second.op}
    if Op.REDIRECT in ops or not ops & _BOUNDS:
        return "" if first.same_effect(second) else f"{_words(first)} and {_words(second)}"
    if Op.SCALE not in ops and first.relative != second.relative:
        return "their values are in different units"
    if ops == _BOUNDS:
        cap, floor = sorted(pair, key=lambda claim: claim.op)
        if floor.value > cap.value:
            return f"a floor of {floor.value:g} lies above a cap of {cap.value:g}"
        return "only one of them has a condition" if first.conditional or second.conditional else ""
    if Op.CLAMP_IF_ACTIVE in ops and any(_acts_on_inactive(claim) for claim in pair):
        return "one acts where the feature is not active too, a clamp where it is active does not"
    conditional = first if first.conditional else second
    if conditional.conditional and conditional.op not in _BOUNDS:
        return f"{conditional.name} has a condition, and while it holds their changes would add up"
    return ""


def _acts_on_inactive(claim: Claim) -> bool:
    """Whether it is a bound that excludes 0, so that it also moves an inactive feature."""
    return claim.value < 0.0 if claim.op is Op.CAP else claim.op is Op.FLOOR and claim.value > 0.0


def _words(claim: Claim) -> str:
    if claim.op is Op.SCALE:
        return f"scale by {claim.value:g}"
    if claim.op in _BOUNDS:
        return f"{claim.op} at {claim.value:g}{' of the norm' if claim.relative else ''}"
    if claim.to is not None and claim.redirection is not None:
        strength, threshold = claim.redirection.strength, claim.redirection.threshold
        return f"redirect to {claim.to.name} by {claim.value:g}, at strength {strength:g} above {threshold:g}"
    where = " where active" if claim.op is Op.CLAMP_IF_ACTIVE else ""
    return f"clamp to {claim.value:g}{' of the norm' if claim.relative else ''}{where}"


def needless_conditions(claims: Sequence[Claim]) -> Iterator[Contradiction]:
    """Pairs of a claim that always acts and a stricter one with a condition, which would always act too.

    Across policies this is how claims combine. Inside one policy its author cannot mean it.
    """
    for group in by_place(claims).values():
        for fixed in (claim for claim in group if not claim.conditional):
            for conditional in (claim for claim in group if claim.conditional):
                if _is_stricter(conditional, fixed):
                    yield Contradiction(
                        fixed,
                        conditional,
                        "the first acts always and the second, which has a condition, is stricter, so it "
                        "would act always too; give both a condition, or leave one out",
                    )


def _is_stricter(conditional: Claim, fixed: Claim) -> bool:
    if Op.BAN in (conditional.op, fixed.op):
        wider = fixed.phase is not Phase.ALL and conditional.phase is not fixed.phase
        return conditional.op is fixed.op and (conditional.value > fixed.value or wider)
    if conditional.op not in _BOUNDS or not conditional.acts_in(fixed.phase):
        return False
    sign = 1.0 if conditional.op is Op.CAP else -1.0
    if fixed.op is Op.SCALE:
        return True
    return conditional.relative == fixed.relative and sign * conditional.value < sign * fixed.value


def merge(claims: Iterable[Claim]) -> Merged:
    """The rows of claims that do not contradict each other.

    Conditional bans aside, no stage has two rows of one probe for the same tokens. Bans take the greatest
    strength, and all tokens if their phases differ. Caps take the minimum, floors the maximum, and both
    also bound what clamps and scales of the same probe set. Where a probe has a row that always acts, its
    conditional bans, caps and floors are folded into that row: the stricter one counts. Conditional bans
    of one probe stay apart: while both conditions hold, their pushes add up.
    """
    always: dict[Site, tuple[list[Edit], list[Edit]]] = {}
    conditional: dict[Owner, dict[Site, tuple[list[Edit], list[Edit]]]] = {}
    for (site, _), group in sorted(by_place(claims).items(), key=lambda item: item[0]):
        bans = [claim for claim in group if claim.op is Op.BAN]
        for owner, edit in _merged_rules([claim for claim in group if claim.op is not Op.BAN]):
            target = always if owner is None else conditional.setdefault(owner, {})
            target.setdefault(site, ([], []))[0].append(edit)
        for owner, edit in _merged_bans(bans):
            target = always if owner is None else conditional.setdefault(owner, {})
            target.setdefault(site, ([], []))[1].append(edit)
    return Merged(_frozen(always), {owner: _frozen(sites) for owner, sites in sorted(conditional.items())})


def _frozen(by_site: Mapping[Site, tuple[list[Edit], list[Edit]]]) -> dict[Site, SiteRows]:
    return {site: SiteRows(tuple(rules), tuple(bans)) for site, (rules, bans) in by_site.items()}


def _merged_bans(bans: Sequence[Claim]) -> Iterator[tuple[Owner | None, Edit]]:
    """The rows of one probe's bans: a single one that always acts, or one for each rule with a condition."""
    if any(not ban.conditional for ban in bans):
        yield None, _ban(bans)
        return
    for ban in sorted(bans, key=lambda claim: claim.owner):
        yield ban.owner, _ban([ban])


def _ban(bans: Sequence[Claim]) -> Edit:
    phases = {ban.phase for ban in bans}
    phase = phases.pop() if len(phases) == 1 else Phase.ALL
    return rows.ban(_probe(bans).target.probe, max(ban.value for ban in bans), phase=phase)


def _probe(claims: Sequence[Claim]) -> Claim:
    """The claim whose probe is used: that of the first owner, so that the order of claims does not matter."""
    return min(claims, key=lambda claim: claim.owner)


def _merged_rules(claims: Sequence[Claim]) -> Iterator[tuple[Owner | None, Edit]]:
    """The rows of one probe in the stage of rules, worked out for the prompt and for the completion."""
    by_owner: dict[Owner | None, dict[Phase, Edit]] = {}
    for phase in (Phase.PROMPT, Phase.COMPLETION):
        acting = [claim for claim in claims if claim.acts_in(phase)]
        if any(not claim.conditional for claim in acting):
            by_owner.setdefault(None, {})[phase] = _bounded(acting)
        else:
            for claim in acting:
                by_owner.setdefault(claim.owner, {})[phase] = _bounded([claim])
    for owner, edits in by_owner.items():
        for edit in _joined(edits):
            yield owner, edit


def _joined(edits: Mapping[Phase, Edit]) -> Iterator[Edit]:
    """One row for all tokens if the rows of both phases do the same, else one for each phase."""
    values = list(edits.values())
    if len(values) == 2 and values[0].numbers() == values[1].numbers():
        yield values[0]
        return
    for phase, edit in edits.items():
        yield replace(edit, phase=phase)


def _bounded(claims: Sequence[Claim]) -> Edit:
    """One row: a redirect, or the clamp or scale, if there is one, under the least cap and above the
    greatest floor."""
    probe = _probe(claims).target.probe
    bounds = [claim for claim in claims if claim.op in _BOUNDS]
    cap = min((claim.value for claim in bounds if claim.op is Op.CAP), default=rows.INFINITY)
    floor = max((claim.value for claim in bounds if claim.op is Op.FLOOR), default=-rows.INFINITY)
    sets = next((claim for claim in claims if claim.op not in _BOUNDS), None)
    if sets is None or sets.op is Op.SCALE:
        factor, relative = 1.0 if sets is None else sets.value, any(claim.relative for claim in bounds)
        return Edit(probe, a=factor, lo=floor, hi=cap, relative_to_norm=relative)
    if sets.redirection is not None:
        return rows.redirect(probe, sets.value, sets.redirection)
    make = rows.clamp if sets.op is Op.CLAMP else rows.clamp_if_active
    return make(probe, max(min(sets.value, cap), floor), relative=sets.relative)
