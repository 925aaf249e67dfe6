"""What a request changes or watches: edits, watches, features and directions.

A target is a feature or a direction: an index (`123`), a label (`"Great Wall"`), a feature of
a named SAE (`feature(123, sae="res-12")`), a feature found by `search_features`, `direction([...])`, or one
that the server keeps, `direction("refusal")`. The index or label alone is enough if the server has one SAE.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Operation = Literal["clamp", "clamp_if_active", "scale", "add", "cap", "floor", "ablate", "ban", "redirect"]
Unit = Literal["feature", "max_activation", "norm_fraction"]
Phase = Literal["all", "prompt", "completion"]


@dataclass(frozen=True, slots=True)
class FeatureRef:
    """A feature of an SAE, by index or by exact label. An empty `sae` means the server's only one."""

    selector: int | str
    sae: str = ""


@dataclass(frozen=True, slots=True)
class FeatureInfo:
    """What is recorded about one feature. What is not recorded is None or empty."""

    sae: str
    index: int
    site: str
    label: str
    max_activation: float | None
    """The largest activation recorded, in feature units."""
    density: float | None
    """The share of tokens on which the feature is active, from 0 to 1."""
    subjects: tuple[str, ...]
    languages: tuple[str, ...]
    precision: float | None
    """The share of its firings that the label explains, from 0 to 1."""
    recall: Mapping[str, float]
    """For each language, the share of the label's occurrences on which the feature fires, from 0 to 1."""
    precision_by_language: Mapping[str, float]
    """For each language, the share of its firings there that the label explains, from 0 to 1."""
    harmful: bool
    """Whether the label marks something harmful."""


_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Direction:
    """A direction in activation space, whose norm is ignored: by its numbers, as many as activations have at
    its site, or one that the server keeps, by its digest or its name.

    Raises ValueError unless exactly one of the three is given.
    """

    values: tuple[float, ...] = ()
    digest: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.values, self.digest, self.name))) != 1:
            raise ValueError("a direction has either values, a digest or a name")


@dataclass(frozen=True, slots=True)
class KeptDirection:
    """A direction that the server keeps; itself a target of edits and watches."""

    digest: str
    """The SHA-256 of its numbers scaled to length 1, in hexadecimal, as receipts and records have it."""
    name: str
    """Empty where it has none."""
    site: str
    """Where an edit or watch is that names it and no site; empty where it has none."""
    shipped: bool
    """Whether it is the operator's: everybody's, and not to be deleted."""


Target = int | str | FeatureRef | FeatureInfo | Direction | KeptDirection


@dataclass(frozen=True, slots=True)
class Redirection:
    """What a redirect writes, how hard it pushes against what it reads, and above which value it acts."""

    target: FeatureRef | Direction
    strength: float = 0.0
    threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one target; made by `clamp`, `scale`, `add`, `cap`, `floor`, `ablate`, `ban`, `redirect`.

    Raises ValueError for an operation, unit or phase that does not exist, for a redirect without a
    redirection, and for any other operation with one.
    """

    operation: Operation
    target: FeatureRef | Direction
    value: float | None = None
    unit: Unit | None = None
    site: str = ""
    phase: Phase | None = None
    redirect: Redirection | None = None

    def __post_init__(self) -> None:
        _one_of("operation", self.operation, get_args(Operation))
        if self.unit is not None:
            _one_of("unit", self.unit, get_args(Unit))
        if self.phase is not None:
            _one_of("phase", self.phase, get_args(Phase))
        if (self.operation == "redirect") != (self.redirect is not None):
            raise ValueError("redirect: a redirect needs one, and no other operation takes one")


@dataclass(frozen=True, slots=True)
class Watch:
    """One target whose value is reported for each generated token."""

    target: FeatureRef | Direction
    site: str = ""


def feature(selector: int | str, *, sae: str = "") -> FeatureRef:
    """The feature with this index or exact label, of the SAE with this id."""
    return FeatureRef(selector, sae)


def direction(values: Iterable[float] | str) -> Direction:
    """A direction in activation space: from numbers (a list, an array or a one-dimensional tensor), or one
    that the server keeps, by its name or by all 64 digits of its digest."""
    if isinstance(values, str):
        return Direction(digest=values) if _DIGEST.fullmatch(values) else Direction(name=values)
    return Direction(tuple(float(value) for value in values))


def watch(target: Target, *, site: str = "") -> Watch:
    """Report the target's value, before and after all edits, for each generated token."""
    return Watch(as_target(target), site)


def clamp(
    target: Target,
    value: float,
    *,
    unit: Unit | None = None,
    site: str = "",
    phase: Phase | None = None,
    if_active: bool = False,
) -> Edit:
    """Set the target's value at every token, or with `if_active` only where it is greater than 0.

    `value` is in feature units, or with `unit` in multiples of the feature's recorded maximum
    ("max_activation") or of the activation's norm ("norm_fraction").
    """
    operation: Operation = "clamp_if_active" if if_active else "clamp"
    return Edit(operation, as_target(target), value, unit, site, phase)


def scale(target: Target, factor: float, *, site: str = "", phase: Phase | None = None) -> Edit:
    """Multiply the target's value by a plain factor: 0.5 turns it down by half."""
    return Edit("scale", as_target(target), factor, None, site, phase)


def add(
    target: Target, value: float, *, unit: Unit | None = None, site: str = "", phase: Phase | None = None
) -> Edit:
    """Add to the target's value; `value` and `unit` as in `clamp`."""
    return Edit("add", as_target(target), value, unit, site, phase)


def cap(
    target: Target, value: float, *, unit: Unit | None = None, site: str = "", phase: Phase | None = None
) -> Edit:
    """Keep the target's value from exceeding `value`; `value` and `unit` as in `clamp`."""
    return Edit("cap", as_target(target), value, unit, site, phase)


def floor(
    target: Target, value: float, *, unit: Unit | None = None, site: str = "", phase: Phase | None = None
) -> Edit:
    """Keep the target's value from falling below `value`; `value` and `unit` as in `clamp`."""
    return Edit("floor", as_target(target), value, unit, site, phase)


def ablate(target: Target, *, site: str = "", phase: Phase | None = None) -> Edit:
    """Set the target's value to 0."""
    return Edit("ablate", as_target(target), None, None, site, phase)


def ban(target: Target, strength: float = 0.0, *, site: str = "", phase: Phase | None = None) -> Edit:
    """Keep the feature inactive, whatever else the request does.

    `strength` is a plain number of at least 0: an active feature's value f is replaced by -strength·f, so 0
    removes the feature and more pushes against it. Then a projection keeps every banned feature inactive.
    """
    return Edit("ban", as_target(target), strength, None, site, phase)


def redirect(
    target: Target,
    factor: float,
    *,
    to: Target,
    strength: float = 0.0,
    threshold: float = 0.0,
    unit: Unit | None = None,
    site: str = "",
    phase: Phase | None = None,
) -> Edit:
    """Where the target's value f is greater than `threshold`, write factor·f of `to` in its place.

    f itself is replaced by -strength·f, so 0 removes it and more pushes against it. `to` is a feature or a
    direction at the same site. Each unit of the target becomes `factor` units of `to`; with the unit
    "max_activation" the target at its recorded maximum becomes `factor` times the recorded maximum of `to`.
    `threshold` is in the same unit; `strength` is a plain number. There is no "norm_fraction" here.
    """
    redirection = Redirection(as_target(to), strength, threshold)
    return Edit("redirect", as_target(target), factor, unit, site, phase, redirection)


#: The operations that can be written on a command line, such as `--clamp 12=3.5`, with the help of their
#: options. The form of each follows from its function's parameters.
WRITTEN: Mapping[str, tuple[Callable[..., Edit], str]] = MappingProxyType(
    {
        "clamp": (clamp, "Set a feature's value at every token. Again for another."),
        "scale": (scale, "Multiply a feature's value: 0.5 turns it down."),
        "add": (add, "Add to a feature's value."),
        "cap": (cap, "Keep a feature from exceeding a value."),
        "ablate": (ablate, "Set a feature's value to 0, or take a direction away."),
        "ban": (ban, "Keep a feature inactive; strength 0 removes it, more pushes against it."),
        "redirect": (
            redirect,
            "Where a feature is active, write FACTOR times its value of the feature TO instead.",
        ),
    }
)


def as_target(target: Target) -> FeatureRef | Direction:
    """The target of an edit, a watch or a look-up. Raises TypeError for anything that is no target."""
    if isinstance(target, FeatureRef | Direction):
        return target
    if isinstance(target, FeatureInfo):
        return FeatureRef(target.index, target.sae)
    if isinstance(target, KeptDirection):
        return Direction(digest=target.digest)
    if isinstance(target, int | str) and not isinstance(target, bool):
        return FeatureRef(target)
    raise TypeError(f"a target is an index, a label, a feature or a direction, not {type(target).__name__}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
