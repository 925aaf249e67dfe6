"""Programs: the rows that one request needs at each site, validated, ordered and named by a digest."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from saegis_server.steering.digest import digest_of
from saegis_server.steering.rows import INFINITY, Edit, Norm, Phase, Probe
from saegis_server.steering.site import Site

#: Numbers beyond this are refused: no feature of a finite model comes near it.
LARGEST_VALUE = 1e6


class SteeringError(ValueError):
    """A program that cannot be applied as asked: at which site, if at one; its rows, e.g. ("edits", 2)."""

    def __init__(self, message: str, site: Site | None, rows: tuple[tuple[str, int], ...] = ()) -> None:
        super().__init__(message)
        self.site = site
        self.rows = rows


@dataclass(frozen=True, slots=True)
class SiteProgram:
    """The rows at one site: a request's edits, the operator's rules, the bans, and what is read.

    They act in this order, each stage on what the last one left; within a stage all read the same x.
    watches: what the request is told. guards: what the operator's conditions read on the clean x; nobody is
    told. max_relative_norm: the edits may move a token by at most this share of ‖x‖; what would move it
    further is scaled down.
    """

    edits: tuple[Edit, ...] = ()
    rules: tuple[Edit, ...] = ()
    bans: tuple[Edit, ...] = ()
    watches: tuple[Probe, ...] = ()
    guards: tuple[Probe, ...] = ()
    max_relative_norm: float | None = None

    def stages(self) -> Iterator[tuple[str, tuple[Edit, ...]]]:
        """The stages that change x, by name, in the order in which they act."""
        yield "edits", self.edits
        yield "rules", self.rules
        yield "bans", self.bans

    @property
    def redirects(self) -> tuple[tuple[int, Edit, Probe], ...]:
        """The operator's redirects: their places among the rules, and their targets."""
        return tuple(
            (place, rule, rule.target) for place, rule in enumerate(self.rules) if rule.target is not None
        )

    @property
    def held(self) -> int:
        """At most how many rows are held: the bans, the rules that leave a bound and, beside these, the
        targets of the operator's redirects.
        """
        bounds = len(self.bans) + sum(rule.holds for rule in self.rules)
        targets = {(target.key, rule.factor > 0.0) for _, rule, target in self.redirects}
        return bounds + len(targets) if bounds else 0

    @property
    def changes_anything(self) -> bool:
        """Whether any row of this site may change an activation."""
        return bool(self.edits or self.rules or self.bans)


@dataclass(frozen=True)
class SteeringProgram:
    """What is read and changed at every site for one request.

    Raises SteeringError for numbers that are not finite or absurd, for two edits of one probe that
    contradict each other, for a redirect that is none, for a ban or an operator's bound or redirect that
    cannot be proven (an SAE that normalises, or decides by rank), and for a bound on the edits that is not a
    share.

    moves_first_token: whether rows move a text's first token also where it is the model's own
    beginning-of-sequence token.
    """

    sites: Mapping[Site, SiteProgram] = field(default_factory=dict)
    moves_first_token: bool = False

    def __post_init__(self) -> None:
        for site, at_site in self.sites.items():
            for stage, rows in at_site.stages():
                for index, edit in enumerate(rows):
                    _check_numbers(site, stage, index, edit)
                    if fault := _redirect_fault(stage, edit):
                        raise SteeringError(fault, site, ((stage, index),))
            if conditional := [place for place, edit in enumerate(at_site.edits) if edit.when]:
                raise SteeringError(
                    "a request's own edit has no condition", site, (("edits", conditional[0]),)
                )
            _check_contradictions(site, at_site.edits)
            _check_bans(site, at_site.bans)
            _check_provable(site, at_site)
            _check_ranked(site, at_site)
            _check_bound(site, at_site.max_relative_norm)

    @property
    def steers(self) -> bool:
        """Whether any activation may change."""
        return any(site.changes_anything for site in self.sites.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every number and probe of every row, in order: equal digests steer equally."""
        return digest_of(self)


#: The program of a request that asks for nothing.
UNSTEERED = SteeringProgram()


def _check_numbers(site: Site, stage: str, index: int, edit: Edit) -> None:
    for number in (edit.a, edit.b, edit.factor):
        if not math.isfinite(number) or abs(number) > LARGEST_VALUE:
            raise SteeringError(
                f"{number} is not a value between ±{LARGEST_VALUE:g}", site, ((stage, index),)
            )
    for bound in (edit.lo, edit.hi, edit.above):
        if math.isnan(bound) or (math.isfinite(bound) and abs(bound) > LARGEST_VALUE):
            raise SteeringError(f"{bound} is not a bound between ±{LARGEST_VALUE:g}", site, ((stage, index),))


def _redirect_fault(stage: str, edit: Edit) -> str:
    """Why an edit with a target is no redirect, or one without a target is half of one; empty if neither."""
    probe, target = edit.probe, edit.target
    if target is None:
        return "a factor is of a redirect, and this has no target" if edit.factor else ""
    if stage == "bans":
        return f"{probe.name} cannot be banned and redirected by one row"
    if edit.a > 0.0:
        return f"the strength of a redirect must be at least 0, not {-edit.a:g}"
    if not 0.0 <= edit.above < INFINITY:
        return f"the threshold of a redirect must be finite and at least 0, not {edit.above:g}"
    if edit.b or edit.lo > -INFINITY or edit.hi < INFINITY or edit.relative_to_norm:
        return f"only a redirect has a target, and this sets or bounds {probe.name}"
    if target.norm is not probe.norm:
        return (
            f"{probe.name} cannot be redirected to {target.name}: what is written is scaled as the one that "
            f"reads is normalised ({probe.norm.name.lower()}), and the target's is {target.norm.name.lower()}"
        )
    return ""


def _overlap(one: Phase, other: Phase) -> bool:
    return Phase.ALL in (one, other) or one == other


def _is_bound(edit: Edit) -> bool:
    return edit.a == 1.0 and edit.b == 0.0


def _check_contradictions(site: Site, edits: tuple[Edit, ...]) -> None:
    """Two edits of one probe at the same tokens: only a cap and a floor that leave room go together.

    Of the edits that go together the highest floor and the lowest cap stand for all, so that any number of
    them is checked in one pass.
    """
    tightest: dict[tuple[str, Phase], tuple[int, int]] = {}
    for later, edit in enumerate(edits):
        for phase in Phase:
            known = tightest.get((edit.probe.key, phase))
            if known is None or not _overlap(edit.phase, phase):
                continue
            opposed = next((earlier for earlier in known if not _go_together(edits[earlier], edit)), None)
            if opposed is not None:
                raise SteeringError(
                    f"two edits of {edit.probe.name} contradict each other",
                    site,
                    (("edits", opposed), ("edits", later)),
                )
        floor, cap = tightest.get((edit.probe.key, edit.phase), (later, later))
        tightest[edit.probe.key, edit.phase] = (
            later if edit.lo > edits[floor].lo else floor,
            later if edit.hi < edits[cap].hi else cap,
        )


def _go_together(one: Edit, other: Edit) -> bool:
    """Whether two edits of one probe at the same tokens leave room for each other."""
    bounds = _is_bound(one) and _is_bound(other)
    same_unit = one.relative_to_norm == other.relative_to_norm
    return bounds and same_unit and max(one.lo, other.lo) <= min(one.hi, other.hi)


def _check_bans(site: Site, bans: tuple[Edit, ...]) -> None:
    for index, edit in enumerate(bans):
        if edit.a > 0.0:
            raise SteeringError("a ban's strength must not be negative", site, (("bans", index),))


def _check_provable(site: Site, program: SiteProgram) -> None:
    """What an SAE that normalises its input reads can be moved, but not held; and whatever changes ‖x‖ or
    the mean changes it, so that a request could hide it from an operator's redirect.
    """
    no_half_space = "so the allowed activations are no half-space"
    hidden = "so a request's edit could hide it by changing the norm"
    for stage in ("bans", "rules"):
        for index, edit in enumerate(getattr(program, stage)):
            norm = edit.probe.norm
            if norm is Norm.NONE or not (stage == "bans" or edit.holds or edit.target is not None):
                continue
            verb = "banned" if stage == "bans" else "held" if edit.target is None else "redirected by a rule"
            raise SteeringError(
                f"{edit.probe.name} cannot be {verb}: its SAE normalises its input ({norm.name.lower()}), "
                f"{no_half_space if edit.target is None else hidden} and it could not be guaranteed",
                site,
                ((stage, index),),
            )


def _check_ranked(site: Site, program: SiteProgram) -> None:
    """Where rank decides, a feature is surely not active where its pre-activation is at most 0, and surely at
    most c where that is; but whether it is active is up to the others, which a request may move.
    """
    for index, rule in enumerate(program.rules):
        if rule.probe.rank is None:
            continue
        least = min(max(rule.b, rule.lo), rule.hi) if rule.a == 0.0 else rule.lo
        if rule.target is None and not (rule.holds and least > 0.0):
            continue
        verb = "held from below" if rule.target is None else "redirected by a rule"
        raise SteeringError(
            f"{rule.probe.name} cannot be {verb}: its SAE decides by rank which features are active, so a "
            "request's edit of others could take it out, and it could not be guaranteed",
            site,
            (("rules", index),),
        )


def _check_bound(site: Site, bound: float | None) -> None:
    if bound is not None and not 0.0 <= bound <= LARGEST_VALUE:
        raise SteeringError(f"max_relative_norm {bound} is not a share between 0 and {LARGEST_VALUE:g}", site)
