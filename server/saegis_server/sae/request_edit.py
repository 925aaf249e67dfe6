"""Request edits: what a request asks for of one feature or direction, and the units of its value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from saegis_server.sae.catalog import FoundFeature
from saegis_server.steering.operations import Op, Unit, value_fault
from saegis_server.steering.rows import Edit, Phase, Probe, Redirection
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True)
class RequestEdit:
    """One edit or watch that a request asks for. path: its field, such as "steering.edits[2]".

    feature: None for a direction. value: as given, in `unit`; None if there is none.
    edit: the row that it becomes at `site`. redirection: of a redirect, as given, its threshold in `unit`.
    to: the feature that a redirect writes; None if that is a direction. direction_name: by which name the
    request referred to a direction that is kept; empty otherwise.
    """

    path: str
    site: Site
    op: Op
    edit: Edit
    feature: FoundFeature | None = None
    value: float | None = None
    unit: Unit = Unit.FEATURE
    redirection: Redirection | None = None
    to: FoundFeature | None = None
    direction_name: str = ""

    @property
    def probes(self) -> tuple[Probe, ...]:
        """What it concerns: the probe that it reads and, of a redirect, the one that it writes."""
        probe, target = self.edit.probe, self.edit.target
        return (probe,) if target is None else (probe, target)


class EditError(ValueError):
    """A part of an edit that means nothing; `field` names it: "unit", "value" or, of a redirect, "to",
    "strength" or "threshold"."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field


class Located(Protocol):
    """A feature or a direction at its site. feature: None for a direction."""

    @property
    def site(self) -> Site: ...
    @property
    def probe(self) -> Probe: ...
    @property
    def feature(self) -> FoundFeature | None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a feature or direction, as it was given.

    value, unit: None if there is none. to, strength, threshold: of a redirect alone. name: how the one who
    asks spells the operation, if otherwise.
    """

    op: Op
    value: float | None = None
    unit: Unit | None = None
    phase: Phase = Phase.ALL
    to: Located | None = None
    strength: float = 0.0
    threshold: float = 0.0
    name: str = ""


def request_edit(path: str, target: Located, wish: Wish) -> RequestEdit:
    """The edit with its row. Raises EditError for what the operation does not take, and for numbers that mean
    nothing in their unit."""
    op, unit, to = wish.op, wish.unit or Unit.FEATURE, wish.to
    given = None if to is None else Redirection(to.probe, wish.strength, wish.threshold)
    if fault := op.fault(wish.value, wish.unit, wish.name, given):
        raise EditError(*fault)
    value, relative, redirection = wish.value or 0.0, False, given
    if to is None or given is None:
        value, relative = scaled(value, unit, target.feature)
    else:
        value, redirection = redirected(value, unit, given, (target.feature, to.feature))
    row = op.row(target.probe, value, wish.phase, relative, redirection)
    written = None if to is None else to.feature
    return RequestEdit(path, target.site, op, row, target.feature, wish.value, unit, given, written)


def scaled(
    value: float, unit: Unit, feature: FoundFeature | None, name: str = "this feature"
) -> tuple[float, bool]:
    """A value in feature units or, with True, as a fraction of ‖x‖. feature: None for a direction.

    Raises EditError, whose message calls the feature `name`.
    """
    if unit is not Unit.MAX_ACTIVATION:
        return value, unit is Unit.NORM_FRACTION
    value *= recorded_maximum(feature, name)
    if fault := value_fault(value):
        raise EditError("value", fault)
    return value, False


def redirected(
    factor: float,
    unit: Unit,
    to: Redirection,
    features: tuple[FoundFeature | None, FoundFeature | None],
    names: tuple[str, str] = ("this feature", "the feature that is written"),
) -> tuple[float, Redirection]:
    """The factor and the redirection of a redirect in feature units.

    factor: in max_activation, how many of its maxima the target gets where what is read is at its own.
    features: the one that is read and the one that is written; None for a direction. Raises EditError, whose
    messages call them by `names`.
    """
    if unit is not Unit.MAX_ACTIVATION:
        return factor, to
    source, target = (recorded_maximum(*one) for one in zip(features, names, strict=True))
    threshold = to.threshold * source
    factor = factor * target / source
    for field, number in (("value", factor), ("threshold", threshold)):
        if fault := value_fault(number):
            raise EditError(field, fault)
    return factor, replace(to, threshold=threshold)


def recorded_maximum(feature: FoundFeature | None, name: str) -> float:
    """The largest activation recorded for a feature, None for a direction. Raises EditError without one."""
    if feature is None:
        raise EditError("unit", "max_activation is for features; a direction has no maximum")
    if not feature.max_activation:
        raise EditError("unit", f"no largest activation is recorded for {name}")
    return feature.max_activation
