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
        features = (edit.feature, edit.to) if edit.op.redirects else (edit.feature,)
        covered = all(
            self._covers((edit.site, probe.key), feature)
            for probe, feature in zip(edit.probes, features, strict=True)
        )
        if not covered or edit.op is Op.WATCH:
            return Fit.FITS if covered else Fit.NOT
        return Fit.FITS if self._holds(edit) and self._holds_strength(edit) else Fit.BUT_FOR_VALUE

    def _covers(self, place: Place, feature: FoundFeature | None) -> bool:
        """Whether it is for what stands at a place: a feature or, with None, a direction."""
        if feature is None:
            return self.directions
        return self.features is None or place in self.features

    def _holds(self, edit: RequestEdit) -> bool:
        """Whether an edit's value lies in the range. Units are converted without rounding, so that a value
        outside by its last digit alone is outside in every unit."""
        value = 0.0 if edit.value is None else edit.value
        if not edit.op.units or edit.unit is self.unit:
            return self.low <= value <= self.high
        asked, allowed = (feature_units(unit, edit) for unit in (edit.unit, self.unit))
        if asked is None or allowed is None or not math.isfinite(value):
            return False
        exact = Fraction(value) * asked
        return (math.isinf(self.low) or Fraction(self.low) * allowed <= exact) and (
            math.isinf(self.high) or exact <= Fraction(self.high) * allowed
        )

    def _holds_strength(self, edit: RequestEdit) -> bool:
        """Whether the strength of a redirect is at most the upper bound, a plain number here, or 0."""
        return edit.redirection is None or edit.redirection.strength <= max(self.high, 0.0)

    def outside(self, edit: RequestEdit) -> str:
        """In words: why the value of an edit that fits otherwise is not allowed."""
        if edit.redirection is not None and not self._holds_strength(edit):
            highest, strength = max(self.high, 0.0), edit.redirection.strength
            return f"a strength of {strength:g} is not in the range of {self.id}: at most {highest:g}"
        unit = edit.unit.value
        shown = f"{0.0 if edit.value is None else edit.value:g}"
        if not edit.op.units:
            return f"{shown} is not in the range of {self.id}: {self.range}"
        if edit.unit is self.unit:
            return f"{shown} in unit {unit} is not in the range of {self.id}: {self.range}"
        asked, allowed = (feature_units(value_unit, edit) for value_unit in (edit.unit, self.unit))
        if asked is None or allowed is None:
            why = _no_measure(edit, self.unit)
            return f"{shown} in unit {unit} cannot be held against {self.id}: {self.range}; {why}"
        exact = (edit.value or 0.0) * float(asked) / float(allowed)
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


def feature_units(unit: Unit, edit: RequestEdit) -> Fraction | None:
    """How many feature units one of `unit` is, for the value of an edit; of a redirect, for its factor.

    None where that is unknown: without a recorded maximum, as of a direction, and for a fraction of ‖x‖,
    which differs at every token.
    """
    if unit is Unit.FEATURE:
        return Fraction(1)
    read, written = _maximum(edit.feature), _maximum(edit.to)
    if unit is Unit.NORM_FRACTION or read is None:
        return None
    if not edit.op.redirects:
        return read
    return None if written is None else written / read


def _maximum(feature: FoundFeature | None) -> Fraction | None:
    """The largest activation recorded for a feature. None without one, and of a direction."""
    return Fraction(feature.max_activation) if feature is not None and feature.max_activation else None


def _no_measure(edit: RequestEdit, allowed: Unit) -> str:
    """Why an edit's value cannot be converted to the unit of an allowance."""
    if Unit.NORM_FRACTION in (edit.unit, allowed):
        return "a fraction of ‖x‖ is another value at every token"
    unmeasured = edit.feature if _maximum(edit.feature) is None else edit.to
    if unmeasured is None:
        return "a direction has no maximum"
    return f"no largest activation is recorded for feature {unmeasured.index}"


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
        to = f" to {_named(edit.to)}" if edit.op.redirects else ""
        message = f"the policy does not allow {edit.op.value} of {_named(edit.feature)}{to} at {edit.site}"
        near = next((allowance for allowance in allowances if fits[allowance.id] is Fit.BUT_FOR_VALUE), None)
        if near is not None:
            message = near.outside(edit)
        yield Denial(policy, "allow", message, edit.path)


def _named(feature: FoundFeature | None) -> str:
    return "a direction" if feature is None else f"feature {feature.index}"


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
    policy: str, limits: Limits, edits: Sequence[RequestEdit], sites: Sequence[Site], first_taken: Site | None
) -> Iterator[Denial]:
    """Denials of too many edits, and of edits at a site behind one that has a ban or a redirect.

    sites: in forward order. first_taken: the first site with a ban or a redirect; None if there is none.
    Behind the last ban or redirect of a feature, edits could write that feature again. The first such site is
    the last one of some feature, so it is the one that counts, and a further one never permits more.
    """
    edits = [edit for edit in edits if edit.op is not Op.WATCH]
    if limits.max_edits is not None and len(edits) > limits.max_edits:
        message = f"has {len(edits)} edits; the policy allows {limits.max_edits}"
        yield Denial(policy, "limits.max_edits", message, "steering.edits")
    if limits.after_bans or first_taken is None:
        return
    for edit in edits:
        if sites.index(edit.site) > sites.index(first_taken):
            message = f"{edit.site} is behind {first_taken}, where features are banned or redirected"
            yield Denial(policy, "limits.after_bans", message, edit.path, shared=True)
