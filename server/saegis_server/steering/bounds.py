"""Bounds: within which range bans, and the operator's caps, floors and clamps, hold what a probe reads.

A value f of a feature and its read q = r·x rise together, so a bound on f is one on q: a half-space of
activations, or, with both sides, the slab between two. What a rule writes along the decoder row is only a
step towards it; the projection then holds it, whatever a request's edits did before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from saegis_server.steering.program import SteeringError
from saegis_server.steering.rows import INFINITY, Edit, Phase, Probe

#: A limit that nothing reaches: a side that is open, or of a padded row.
NO_LIMIT = 1e30


class Side(NamedTuple):
    """One side of a range of reads: max(base, constant + slope·‖x‖)."""

    base: float
    constant: float
    slope: float


class Range(NamedTuple):
    """Where a read q = r·x may lie. ‖x‖ is that of the activation as it comes into the site.

    gate: the row among the rules whose value must be positive for the low side to hold; −1 for always.
    """

    high: Side = Side(-NO_LIMIT, NO_LIMIT, 0.0)
    low: Side = Side(-NO_LIMIT, -NO_LIMIT, 0.0)
    gate: int = -1

    @property
    def has_high(self) -> bool:
        """Whether there is an upper limit."""
        return self.high != OPEN.high

    @property
    def has_low(self) -> bool:
        """Whether there is a lower limit."""
        return self.low != OPEN.low


#: The range that holds nothing.
OPEN = Range()


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A probe whose read is held within a range, at the tokens of prompts and of completions.

    place: the row that wants it, such as ("bans", 2).
    """

    probe: Probe
    prompt: Range
    completion: Range
    place: tuple[str, int]

    @property
    def side(self) -> int:
        """1 if it has only upper limits, −1 if only lower ones, 0 if it has both."""
        ranges = (self.prompt, self.completion)
        high, low = any(each.has_high for each in ranges), any(each.has_low for each in ranges)
        return int(high) - int(low)


def held_by(bans: Sequence[Edit], rules: Sequence[Edit]) -> tuple[Held, ...]:
    """What the bans and the rules of one site hold; the bans first, a row for each.

    A rule says nothing where its probe is banned. What is wanted of one probe becomes one row where that can
    be. Raises SteeringError, with no site, for a bound that no activation can meet.
    """
    found = [_of_ban(place, ban) for place, ban in enumerate(bans)]
    by_probe: dict[str, list[int]] = {}
    for row, each in enumerate(found):
        by_probe.setdefault(each.probe.key, []).append(row)
    banned = {(ban.probe.key, phase) for ban in bans for phase in _phases(ban.phase)}
    for place, rule in enumerate(rules):
        if not rule.holds:
            continue
        key, reach = rule.probe.key, range_of(rule, place)
        prompt, completion = (
            reach if phase in _phases(rule.phase) and (key, phase) not in banned else OPEN
            for phase in (Phase.PROMPT, Phase.COMPLETION)
        )
        new = Held(rule.probe, prompt, completion, ("rules", place))
        for row in by_probe.setdefault(key, []):
            if (joined := _joined(found[row], new)) is not None:
                found[row] = joined
                break
        else:
            by_probe[key].append(len(found))
            found.append(new)
    for each in found:
        _check(each)
    return tuple(found)


def range_of(rule: Edit, place: int = 0) -> Range:
    """The range of reads at which a rule's value is what it wants. Raises SteeringError.

    A clamp wants both sides; where it acts on active features alone, an inactive one may stay so. `place` is
    the rule's, for its gate and for errors.
    """
    if rule.a != 0.0:
        return Range(_high(rule, rule.hi), _low(rule, rule.lo))
    value = min(max(rule.b, rule.lo), rule.hi)
    if value > 0.0:
        _check_reachable(rule, value, place)
    return Range(_high(rule, value), _low(rule, value), gate=place if rule.only_if_active else -1)


def _of_ban(place: int, ban: Edit) -> Held:
    off = Range(high=Side(-NO_LIMIT, ban.probe.limit, 0.0))
    prompt, completion = (
        off if phase in _phases(ban.phase) else OPEN for phase in (Phase.PROMPT, Phase.COMPLETION)
    )
    return Held(ban.probe, prompt, completion, ("bans", place))


def _phases(phase: Phase) -> tuple[Phase, ...]:
    return (Phase.PROMPT, Phase.COMPLETION) if phase is Phase.ALL else (phase,)


def _high(rule: Edit, value: float) -> Side:
    """The largest read at which the probe's value is at most `value`; of a feature, which is never negative,
    at most 0 where that is below 0."""
    probe = rule.probe
    if value == INFINITY:
        return OPEN.high
    if not probe.linear and value < 0.0:
        return Side(-NO_LIMIT, probe.limit, 0.0)
    return _side(rule, value, -NO_LIMIT if probe.linear else probe.limit)


def _low(rule: Edit, value: float) -> Side:
    """The least read at which the probe's value is at least `value`."""
    probe = rule.probe
    if value == -INFINITY or (not probe.linear and value <= 0.0):
        return OPEN.low
    return _side(rule, value, -NO_LIMIT if probe.linear else probe.limit)


def _side(rule: Edit, value: float, base: float) -> Side:
    """gain·q + bias = value, solved for q; never below `base`."""
    gain, bias = (1.0, 0.0) if rule.probe.linear else (rule.probe.gain, rule.probe.value_bias)
    if rule.relative_to_norm:
        return Side(base, -bias / gain, value / gain)
    return Side(base, (value - bias) / gain, 0.0)


def _check_reachable(rule: Edit, value: float, place: int) -> None:
    """Raise SteeringError for a clamp of a feature to a value that it jumps over as it becomes active."""
    probe = rule.probe
    if probe.linear:
        return
    jump = probe.gain * probe.limit + probe.value_bias
    if (jump > 0.0 and rule.relative_to_norm) or value <= jump:
        unit = " of the norm" if rule.relative_to_norm else ""
        raise SteeringError(
            f"{probe.name} cannot be held at {value:g}{unit}: where it is active it is above {jump:g}",
            None,
            (("rules", place),),
        )


def _joined(known: Held, new: Held) -> Held | None:
    """Two rows of one probe as one, if that can be."""
    prompt, completion = _both(known.prompt, new.prompt), _both(known.completion, new.completion)
    if prompt is None or completion is None:
        return None
    return replace(known, prompt=prompt, completion=completion)


def _both(one: Range, other: Range) -> Range | None:
    """The range in which both hold; None where it is not known before ‖x‖ is."""
    if one == OPEN or other == OPEN:
        return other if one == OPEN else one
    if one.gate != other.gate:
        return None
    high = _stricter(one.high, other.high, OPEN.high, min)
    low = _stricter(one.low, other.low, OPEN.low, max)
    return None if high is None or low is None else Range(high, low, one.gate)


def _stricter(one: Side, other: Side, open_side: Side, choose: Callable[[Side, Side], Side]) -> Side | None:
    if open_side in (one, other):
        return other if one == open_side else one
    return choose(one, other) if one.slope == other.slope == 0.0 else None


def _check(held: Held) -> None:
    """Raise SteeringError for a range in which nothing lies."""
    for each in (held.prompt, held.completion):
        if each.has_high and each.has_low and not _leaves_room(each):
            fault = f"the bounds of {held.probe.name} leave no value between them"
            raise SteeringError(fault, None, (held.place,))


def _leaves_room(reach: Range) -> bool:
    """Whether the low side lies under the high one whatever ‖x‖ is."""
    (base, constant, slope), (low_base, low_constant, low_slope) = reach.high, reach.low
    return max(base, constant) >= max(low_base, low_constant) and slope >= low_slope


def numbers_of(held: Held) -> Iterator[float]:
    """The ranges of a row as a table keeps them: for prompts, then for completions; see `apply`."""
    for each in (held.prompt, held.completion):
        yield from (*each.high, *each.low, float(each.gate))
