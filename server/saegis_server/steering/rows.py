"""Rows: what is read from an activation, how it is changed, and where the change is written.

Everything that Saegis does at a site is one form (x is one token's activation, shape [d]):

    q  = r·norm(x)                        read       r: an encoder row, or a unit direction
    f  = φ(q)                             activate   relu, jumprelu, gated, topk, or identity
    f' = clip(a·f + b, lo, hi)            edit       only where its gate holds
    x' = x + s(x)·Σ (f' − f)·w            write      w: a decoder row, or the direction

A redirect writes something else than what it reads: with strength s and factor k its w is
w_i − k/(1+s)·v, so that f_i·w_i goes, −s·f_i·w_i and k·f_i·v come.
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property

import torch
from torch import Tensor

from saegis_server.steering.digest import digest_of

INFINITY = math.inf


class Norm(IntEnum):
    """How an SAE normalises its input (SAELens' `normalize_activations`); average-norm is folded at load."""

    NONE = 0
    CONSTANT_NORM = 1
    LAYER_NORM = 2


class Phase(StrEnum):
    """Which tokens an edit applies to: all, those of the prompt, or those that were generated."""

    ALL = "all"
    PROMPT = "prompt"
    COMPLETION = "completion"


@dataclass(frozen=True, slots=True)
class Rank:
    """Among which features a feature must be one of the largest to be active: TopK, and group max.

    dictionary: the digest of the SAE, the features of which fall into `groups` runs of equal length; group:
    in which of them this one is; kept: how many of a group may be active. See `ranking`.
    """

    dictionary: str
    kept: int
    groups: int = 1
    group: int = 0


@dataclass(frozen=True, eq=False)
class Probe:
    """One feature or direction: how to read it from an activation and how to write to it.

    With q = read·norm(x) the feature is active where `q + gate_bias > threshold`, and its value is
    `gain·q + value_bias`, rectified unless `linear`. An SAE's b_dec is folded into the biases:
    q + bias = W_enc[:, i]·(norm(x) − b_dec) + b_enc. With a `rank` it must be among the largest too.

    `read` and `write` are float32 [d]; `key` tells the probe apart from others at its site (the whole digest
    of an SAE and a feature, or that of a direction).
    """

    key: str
    read: Tensor
    write: Tensor
    gate_bias: float = 0.0
    threshold: float = 0.0
    gain: float = 1.0
    value_bias: float = 0.0
    linear: bool = False
    norm: Norm = Norm.NONE
    rank: Rank | None = None

    @property
    def name(self) -> str:
        """The key as messages tell it, its digest cut short."""
        return ":".join(part[:16] for part in self.key.split(":"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return digest_of(self)

    @property
    def limit(self) -> float:
        """The largest q at which the feature is not active, whatever others are: the right side of its ban's
        half-space."""
        level = self.threshold if self.linear else max(self.threshold, self._rectifier_level())
        return level - self.gate_bias

    def _rectifier_level(self) -> float:
        # relu(gain·q + value_bias) is 0 for q <= −value_bias/gain, whatever the gate says.
        return self.gate_bias - self.value_bias / self.gain

    @classmethod
    def direction(cls, vector: Tensor) -> "Probe":
        """A direction as a linear probe: reads and writes along the unit vector.

        Raises ValueError for a vector that is not one-dimensional, not finite, or zero.
        """
        if vector.ndim != 1:
            raise ValueError(f"a direction must have one dimension, not {vector.ndim}")
        values = vector.detach().to(torch.float64)
        length = float(values.norm())
        if not math.isfinite(length) or length == 0.0:
            raise ValueError("a direction must be finite and not zero")
        unit = (values / length).to(torch.float32)
        return cls(key=f"direction:{digest_of(unit)}", read=unit, write=unit, linear=True)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of one probe: f' = clip(a·f + b, lo, hi), at the tokens of `phase`.

    With `relative_to_norm`, b, lo and hi are fractions of ‖x‖. above: nothing changes where f is not
    greater. when: the condition of the request's guard, counted from 1, while which alone it acts; 0 for
    always. target: of a redirect, what is written `factor` times where f goes; None for every other edit.
    """

    probe: Probe
    a: float = 1.0
    b: float = 0.0
    lo: float = -INFINITY
    hi: float = INFINITY
    above: float = -INFINITY
    relative_to_norm: bool = False
    phase: Phase = field(default=Phase.ALL)
    when: int = 0
    target: Probe | None = None
    factor: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it leaves f a bound, an upper or a lower one: as an operator's rule it is then held."""
        return self.target is None and (self.a == 0.0 or self.lo > -INFINITY or self.hi < INFINITY)

    @property
    def write(self) -> Tensor:
        """What a change of f by one writes, float32 [d]: the probe's own row, and where there is a target
        −factor/(1 − a) times its row, since f changes by (a − 1)·f.
        """
        if self.target is None:
            return self.probe.write
        return self.probe.write - self.factor / (1.0 - self.a) * self.target.write

    def sets(self, value: float) -> float:
        """What becomes of a value of the probe. Not for edits that are relative to the norm."""
        if value <= self.above:
            return value
        return min(max(self.a * value + self.b, self.lo), self.hi)

    def numbers(self) -> tuple[float | str, ...]:
        """What distinguishes this edit from others of the same probe."""
        target = "" if self.target is None else self.target.key
        bounds = (self.a, self.b, self.lo, self.hi, self.above)
        return (*bounds, self.relative_to_norm, self.phase, self.when, target, self.factor)


@dataclass(frozen=True, slots=True)
class Redirection:
    """Where a redirect writes: to a target, at the strength and above the threshold of the feature that it
    reads."""

    target: Probe
    strength: float = 0.0
    threshold: float = 0.0


def clamp(probe: Probe, value: float, *, phase: Phase = Phase.ALL, relative: bool = False) -> Edit:
    """Set f to `value` at every token, the SAE's error kept (Scaling Monosemanticity's clamp)."""
    return Edit(probe, a=0.0, b=value, relative_to_norm=relative, phase=phase)


def clamp_if_active(probe: Probe, value: float, *, phase: Phase = Phase.ALL, relative: bool = False) -> Edit:
    """Set f to `value` where f is positive (conditional clamp, Farrell et al. 2410.19278)."""
    return Edit(probe, a=0.0, b=value, above=0.0, relative_to_norm=relative, phase=phase)


def scale(probe: Probe, factor: float, *, phase: Phase = Phase.ALL) -> Edit:
    """Multiply f by `factor`."""
    return Edit(probe, a=factor, phase=phase)


def add(probe: Probe, value: float, *, phase: Phase = Phase.ALL, relative: bool = False) -> Edit:
    """Add `value` to f."""
    return Edit(probe, b=value, relative_to_norm=relative, phase=phase)


def cap(probe: Probe, value: float, *, phase: Phase = Phase.ALL, relative: bool = False) -> Edit:
    """Let f be at most `value`."""
    return Edit(probe, hi=value, relative_to_norm=relative, phase=phase)


def floor(probe: Probe, value: float, *, phase: Phase = Phase.ALL, relative: bool = False) -> Edit:
    """Let f be at least `value`."""
    return Edit(probe, lo=value, relative_to_norm=relative, phase=phase)


def ablate(probe: Probe, *, phase: Phase = Phase.ALL) -> Edit:
    """Set f to zero; for a direction, remove it from x (Arditi et al. 2406.11717)."""
    return Edit(probe, a=0.0, phase=phase)


def ban(probe: Probe, strength: float = 0.0, *, phase: Phase = Phase.ALL) -> Edit:
    """Push f to −strength·f where it is positive; the projection then keeps it from re-encoding."""
    return Edit(probe, a=-strength, hi=0.0, above=0.0, phase=phase)


def redirect(probe: Probe, factor: float, to: Redirection, *, phase: Phase = Phase.ALL) -> Edit:
    """Where f is above the threshold, write `factor`·f of the target in its place: f becomes −strength·f."""
    return Edit(probe, a=-to.strength, above=to.threshold, phase=phase, target=to.target, factor=factor)
