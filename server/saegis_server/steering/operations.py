"""Operations: the one table of what may be done to a feature or a direction, and what a value of it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum, StrEnum, auto

from saegis_server.steering import rows
from saegis_server.steering.program import LARGEST_VALUE
from saegis_server.steering.rows import Edit, Phase, Probe, Redirection


class Unit(StrEnum):
    """The unit of a value: feature units, multiples of the feature's recorded maximum, fractions of ‖x‖."""

    FEATURE = "feature"
    MAX_ACTIVATION = "max_activation"
    NORM_FRACTION = "norm_fraction"


class Takes(Enum):
    """Whether an operation has a value."""

    VALUE = auto()
    MAYBE = auto()
    NOTHING = auto()


class Op(StrEnum):
    """An operation: its name, what makes its row, whether it takes a value, in which units, whether it bans,
    whether it redirects.

    The names are those of the contract's `Operation` in lower case, and `watch`, which reads and changes
    nothing. Without units a value is a plain number: a factor, or a strength.
    """

    _value_: str
    make: Callable[..., Edit]
    takes: Takes
    units: frozenset[Unit]
    bans: bool

    def __new__(
        cls,
        name: str,
        make: Callable[..., Edit],
        takes: Takes = Takes.VALUE,
        units: frozenset[Unit] = frozenset(),
        bans: bool = False,
    ) -> Op:
        """A row of the table."""
        op = str.__new__(cls, name)
        op._value_ = name
        op.make, op.takes, op.units, op.bans = make, takes, units, bans
        return op

    CLAMP = "clamp", rows.clamp, Takes.VALUE, frozenset(Unit)
    CLAMP_IF_ACTIVE = "clamp_if_active", rows.clamp_if_active, Takes.VALUE, frozenset(Unit)
    SCALE = "scale", rows.scale
    ADD = "add", rows.add, Takes.VALUE, frozenset(Unit)
    CAP = "cap", rows.cap, Takes.VALUE, frozenset(Unit)
    FLOOR = "floor", rows.floor, Takes.VALUE, frozenset(Unit)
    ABLATE = "ablate", rows.ablate, Takes.NOTHING
    BAN = "ban", rows.ban, Takes.MAYBE, frozenset[Unit](), True
    REDIRECT = "redirect", rows.redirect, Takes.VALUE, frozenset((Unit.FEATURE, Unit.MAX_ACTIVATION))
    WATCH = "watch", Edit, Takes.NOTHING

    @property
    def redirects(self) -> bool:
        """Whether it writes another feature or direction than it reads."""
        return self is Op.REDIRECT

    def row(
        self,
        probe: Probe,
        value: float,
        phase: Phase = Phase.ALL,
        relative: bool = False,
        to: Redirection | None = None,
    ) -> Edit:
        """The row of this operation.

        value: in feature units or, with `relative`, a fraction of ‖x‖; the factor of a scale or a redirect,
        the strength of a ban; of no account for what takes none. to: of a redirect, and of nothing else.
        """
        if self.redirects:
            return self.make(probe, value, to, phase=phase)
        value_of_it = () if self.takes is Takes.NOTHING else (value,)
        unit_of_it = {"relative": relative} if self.units else {}
        return self.make(probe, *value_of_it, phase=phase, **unit_of_it)

    def fault(
        self, value: float | None, unit: Unit | None, name: str = "", to: Redirection | None = None
    ) -> tuple[str, str] | None:
        """Which of "value", "unit", "to", "strength" and "threshold" is wrong, and why; None if nothing is.

        value, unit, to: None where none is given. name: how the one who asks spells the operation.
        """
        name = name or self.value
        if (to is not None) is not self.redirects:
            return "to", f"{name} {'needs a' if self.redirects else 'takes no'} target to write instead"
        if unit is not None and unit not in self.units:
            return "unit", f"{name} takes no unit{f' {unit}' if self.units else ''}"
        if value is None:
            return ("value", f"{name} needs a value") if self.takes is Takes.VALUE else None
        if self.takes is Takes.NOTHING:
            return "value", f"{name} takes no value"
        if reason := value_fault(value):
            return "value", reason
        if self.bans and value < 0.0:
            return "value", f"the strength of a ban must be at least 0, not {value:g}"
        return None if to is None else _redirection_fault(to)


def _redirection_fault(to: Redirection) -> tuple[str, str] | None:
    for name, number in (("strength", to.strength), ("threshold", to.threshold)):
        if reason := value_fault(number):
            return name, reason
        if number < 0.0:
            return name, f"the {name} of a redirect must be at least 0, not {number:g}"
    return None


def value_fault(value: float) -> str:
    """Why a value is refused whatever it is for; empty if it is not."""
    if not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if abs(value) > LARGEST_VALUE:
        return f"must lie between ±{LARGEST_VALUE:g}, not {value:g}"
    return ""
