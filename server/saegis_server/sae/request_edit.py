"""Request edits: what a request asks for of one feature or direction, and the units of its value."""

from __future__ import annotations

from dataclasses import dataclass

from saegis_server.sae.catalog import FoundFeature
from saegis_server.steering.operations import Op, Unit, value_fault
from saegis_server.steering.rows import Edit
from saegis_server.steering.site import Site


@dataclass(frozen=True, slots=True)
class RequestEdit:
    """One edit or watch that a request asks for. path: its field, such as "steering.edits[2]".

    feature: None for a direction that the request brings. value: as given, in `unit`; None if there is none.
    edit: the row that it becomes at `site`.
    """

    path: str
    site: Site
    op: Op
    edit: Edit
    feature: FoundFeature | None = None
    value: float | None = None
    unit: Unit = Unit.FEATURE


class UnitError(ValueError):
    """A value that means nothing in its unit; `field` names the one at fault, "unit" or "value"."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(description)
        self.field = field


def scaled(
    value: float, unit: Unit, feature: FoundFeature | None, name: str = "this feature"
) -> tuple[float, bool]:
    """A value in feature units or, with True, as a fraction of ‖x‖. feature: None for a direction.

    Raises UnitError, whose message calls the feature `name`.
    """
    if unit is not Unit.MAX_ACTIVATION:
        return value, unit is Unit.NORM_FRACTION
    if feature is None:
        raise UnitError("unit", "max_activation is for features; a direction has no maximum")
    if not feature.max_activation:
        raise UnitError("unit", f"no largest activation is recorded for {name}")
    value *= feature.max_activation
    if fault := value_fault(value):
        raise UnitError("value", fault)
    return value, False
