"""Authority: what a request may do by itself, by a policy's allowances and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction

from saegis_server.policy.decide.claims import Place
from saegis_server.policy.decide.decision import Denial
from saegis_server.policy.decide.selectors import Faults, Selectors
from saegis_server.policy.decide.uses import ORDINARY, Use, UseOfRequest
from saegis_server.policy.schema.policy import Allowance, Limits
from saegis_server.problem import Problem
from saegis_server.sae.catalog import FoundFeature
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.site import Site


class Fit(Enum):
    """How an allowance fits an edit: not at all, in all but the value, or fully."""

    NOT = auto()
    BUT_FOR_VALUE = auto()
    FITS = auto()


@dataclass(frozen=True, slots=True)
class CompiledAllowance:
    """An allowance with its features resolved. Where `features` or `sites` is None, every one is allowed."""

    id: str
    ops: frozenset[Op]
    features: frozenset[Place] | None
    directions: bool
    sites: frozenset[Site] | None
    low: float
    high: float
    unit: Unit
    uses: frozenset[Use] = frozenset()

    def fit(self, edit: RequestEdit) -> Fit:
        """How it fits an edit. An edit without a value (ablate, a plain ban) counts as one of 0."""
        if edit.op not in self.ops or (self.sites is not None and edit.site not in self.sites):
            return Fit.NOT
        if edit.feature is None:
            covered = self.directions
        else:
            covered = self.features is None or (edit.site, edit.edit.probe.key) in self.features
        if not covered or edit.op is Op.WATCH:
            return Fit.FITS if covered else Fit.NOT
        return Fit.FITS if self._holds(edit) else Fit.BUT_FOR_VALUE

    def _holds(self, edit: RequestEdit) -> bool:
        """Whether an edit's value lies in the range. Units are converted without rounding, so that a value
        outside by its last digit alone is outside in every unit."""
        value = 0.0 if edit.value is None else edit.value
        if not edit.op.units or edit.unit is self.unit:
            return self.low <= value <= self.high
        asked, allowed = (feature_units(unit, edit.feature) for unit in (edit.unit, self.unit))
        if asked is None or allowed is None or not math.isfinite(value):
            return False
        exact = Fraction(value) * Fraction(asked)
        return (math.isinf(self.low) or Fraction(self.low) * Fraction(allowed) <= exact) and (
            math.isinf(self.high) or exact <= Fraction(self.high) * Fraction(allowed)
        )

    def outside(self, edit: RequestEdit) -> str:
        """In words: why the value of an edit that fits otherwise is not allowed."""
        unit = edit.unit.value
        shown = f"{0.0 if edit.value is None else edit.value:g}"
        if not edit.op.units:
            return f"{shown} is not in the range of {self.id}: {self.range}"
        if edit.unit is self.unit:
            return f"{shown} in unit {unit} is not in the range of {self.id}: {self.range}"
        asked, allowed = (feature_units(value_unit, edit.feature) for value_unit in (edit.unit, self.unit))
        if asked is None or allowed is None:
            why = _no_measure(edit, self.unit)
            return f"{shown} in unit {unit} cannot be held against {self.id}: {self.range}; {why}"
        exact = (edit.value or 0.0) * asked / allowed
        # All digits where six would round it into the range.
        same = f"{exact:.6g}" if not self.low <= float(f"{exact:.6g}") <= self.high else repr(exact)
        return (
            f"{shown} in unit {unit}, that is {same} in unit {self.unit.value}, is not in the range of "
            f"{self.id}: {self.range}"
        )

    def permits(self, asked: UseOfRequest) -> Fit:
        """How it fits a use of a request."""
        if asked.use not in self.uses:
            return Fit.NOT
        return Fit.FITS if asked.value is None or asked.value <= self.high else Fit.BUT_FOR_VALUE

    @property
    def range(self) -> str:
        """In words: the values that it allows."""
        unit = self.unit.value
        match math.isfinite(self.low), math.isfinite(self.high):
            case True, True:
                return f"{self.low:g} to {self.high:g}, in unit {unit}"
            case True, False:
                return f"at least {self.low:g}, in unit {unit}"
            case False, True:
                return f"at most {self.high:g}, in unit {unit}"
        return f"any value in unit {unit}"


def feature_units(unit: Unit, feature: FoundFeature | None) -> float | None:
    """How many feature units one of `unit` is, for a feature or, with None, for a direction.

    None where that is unknown: without a recorded maximum, and for a fraction of ‖x‖, which differs at every
    token.
    """
    if unit is Unit.FEATURE:
        return 1.0
    if unit is Unit.NORM_FRACTION or feature is None:
        return None
    return feature.max_activation or None


def _no_measure(edit: RequestEdit, allowed: Unit) -> str:
    """Why an edit's value cannot be converted to the unit of an allowance."""
    if Unit.NORM_FRACTION in (edit.unit, allowed):
        return "a fraction of ‖x‖ is another value at every token"
    if edit.feature is None:
        return "a direction has no maximum"
    return f"no largest activation is recorded for feature {edit.feature.index}"


def compile_allowance(allowance: Allowance, limits: Limits, selectors: Selectors) -> CompiledAllowance:
    """The allowance in the world of `selectors`. Raises SelectionError with all that is wrong with it."""
    path = f"allow.{allowance.id}"
    faults = Faults()
    if Op.BAN in allowance.ops and limits.max_relative_norm is not None:
        faults.problems.append(
            Problem(
                "cannot allow ban together with limits.max_relative_norm: what a ban moves is not bounded",
                f"{path}.ops",
            )
        )
    features: set[Place] = set()
    for place, selector in enumerate(allowance.features or ()):
        with faults.gathered():
            selected = selectors.features(selector, f"{path}.features[{place}]")
            features.update(feature.key for feature in selected)
    sites: set[Site] = set()
    for place, name in enumerate(allowance.sites or ()):
        with faults.gathered():
            sites.add(selectors.site(name, f"{path}.sites[{place}]"))
    faults.raise_any()
    return CompiledAllowance(
        id=allowance.id,
        ops=frozenset(allowance.ops),
        features=None if allowance.features is None else frozenset(features),
        directions=allowance.directions,
        sites=None if allowance.sites is None else frozenset(sites),
        low=-math.inf if allowance.min is None else allowance.min,
        high=math.inf if allowance.max is None else allowance.max,
        unit=allowance.unit,
        uses=frozenset(allowance.uses),
    )


def judge_allowances(
    policy: str, allowances: Sequence[CompiledAllowance], edits: Sequence[RequestEdit]
) -> Iterator[Denial]:
    """A denial for each edit and watch that no allowance covers; without allowances, for every one."""
    for edit in edits:
        fits = {allowance.id: allowance.fit(edit) for allowance in allowances}
        if Fit.FITS in fits.values():
            continue
        target = "a direction" if edit.feature is None else f"feature {edit.feature.index}"
        message = f"the policy does not allow {edit.op.value} of {target} at {edit.site}"
        near = next((allowance for allowance in allowances if fits[allowance.id] is Fit.BUT_FOR_VALUE), None)
        if near is not None:
            message = near.outside(edit)
        yield Denial(policy, "allow", message, edit.path)


def judge_uses(
    policy: str, allowances: Sequence[CompiledAllowance], uses: Sequence[UseOfRequest]
) -> Iterator[Denial]:
    """A denial for each use that no allowance permits."""
    for asked in uses:
        fits = {allowance.id: allowance.permits(asked) for allowance in allowances}
        if Fit.FITS in fits.values():
            continue
        beyond = f" above {ORDINARY[asked.use]:g}" if asked.use in ORDINARY else ""
        message = f"the policy does not allow the use {asked.use.value}{beyond}"
        near = next((allowance for allowance in allowances if fits[allowance.id] is Fit.BUT_FOR_VALUE), None)
        if near is not None:
            message = f"{asked.shown} is more than {near.id} allows: at most {near.high:g}"
        yield Denial(policy, "allow", message, asked.field)


def judge_limits(
    policy: str, limits: Limits, edits: Sequence[RequestEdit], sites: Sequence[Site], first_ban: Site | None
) -> Iterator[Denial]:
    """Denials of too many edits, and of edits at a site behind one that has a ban.

    sites: in forward order. first_ban: the first site with a ban; None if there is none. Behind the last ban
    of a feature, edits could write that feature again. The first site with a ban is the last one of some
    feature, so it is the one that counts, and a further ban never permits more.
    """
    edits = [edit for edit in edits if edit.op is not Op.WATCH]
    if limits.max_edits is not None and len(edits) > limits.max_edits:
        message = f"has {len(edits)} edits; the policy allows {limits.max_edits}"
        yield Denial(policy, "limits.max_edits", message, "steering.edits")
    if limits.after_bans or first_ban is None:
        return
    for edit in edits:
        if sites.index(edit.site) > sites.index(first_ban):
            message = f"{edit.site} is behind {first_ban}, where features are banned"
            yield Denial(policy, "limits.after_bans", message, edit.path, shared=True)
