"""Bounds: within which range bans, and the operator's caps, floors, clamps and redirects, hold what is read.

A value f of a feature and its read q = r·x rise together, so a bound on f is one on q: a half-space of
activations, or, with both sides, the slab between two. What a rule writes along the decoder row is only a
step towards it; the projection then holds it, whatever a request's edits did before.

What an operator's redirect wrote along its target no ban may take away again: where anything is held, the
target's row is too, from below, at the read at which the rules leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from saegis_server.steering.program import SteeringError
from saegis_server.steering.rows import INFINITY, Edit, Phase, Probe

#: A limit that nothing reaches: a side that is open, or of a padded row.
NO_LIMIT = 1e30
#: How many ranges a row has at the tokens of a phase: one may have a condition that the other has not.
RANGES = 2
#: How many of a range's numbers are in units of its row's reads; after them come its gate and its conditions.
READS = 6


class Side(NamedTuple):
    """One side of a range of reads: max(base, constant + slope·‖x‖)."""

    base: float
    constant: float
    slope: float


class Range(NamedTuple):
    """Where a read q = r·x may lie. ‖x‖ is that of the activation as it comes into the site.

    gate: the row among the rules whose value must be positive for the low side to hold; −1 for always.
    when, unless: the condition that must hold for the range to hold, and the one that must not, as Edit.when
    counts them; 0 for none. stays: 1 where the low side rises with the read at which the rules leave the row,
    less what rounding may take of it; else 0.
    """

    high: Side = Side(-NO_LIMIT, NO_LIMIT, 0.0)
    low: Side = Side(-NO_LIMIT, -NO_LIMIT, 0.0)
    gate: int = -1
    when: int = 0
    unless: int = 0
    stays: int = 0

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
#: How many numbers a range has.
RANGE = READS + 4
#: What holds nothing in a phase.
_FREE = (OPEN,) * RANGES
#: Holds a row from below where the rules leave it.
_STAYS = Range(low=Side(-NO_LIMIT, 0.0, 0.0), stays=1)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A probe whose read is held within ranges, RANGES of them at the tokens of prompts and of completions.

    All whose conditions hold count. place: the row that wants it, such as ("bans", 2).
    """

    probe: Probe
    prompt: tuple[Range, ...]
    completion: tuple[Range, ...]
    place: tuple[str, int]

    @property
    def side(self) -> int:
        """1 if it has only upper limits, −1 if only lower ones, 0 if it has both."""
        ranges = (*self.prompt, *self.completion)
        high, low = any(reach.has_high for reach in ranges), any(reach.has_low for reach in ranges)
        return int(high) - int(low)

    @classmethod
    def at(cls, reach: Range, edit: Edit, place: tuple[str, int], silent: Collection[Phase] = ()) -> Held:
        """What an edit holds at the tokens of its phase, but for those of the phases that are `silent`."""
        prompt, completion = (
            (reach, *_FREE[1:]) if phase in _phases(edit.phase) and phase not in silent else _FREE
            for phase in (Phase.PROMPT, Phase.COMPLETION)
        )
        return cls(edit.probe, prompt, completion, place)


def held_by(bans: Sequence[Edit], rules: Sequence[Edit]) -> tuple[Held, ...]:
    """What the bans and the rules of one site hold; the bans first, a row for each.

    A rule says nothing where its probe is banned, as long as it is. What is wanted of one probe becomes one
    row where that can be. The targets of redirects come last, and only beside other rows: by themselves
    nothing takes them back. Raises SteeringError, with no site, for a bound that no activation can meet.
    """
    found: list[Held] = []
    for place, ban in enumerate(bans):
        limit = Range(high=Side(-NO_LIMIT, ban.probe.limit, 0.0), when=ban.when)
        found.append(Held.at(limit, ban, ("bans", place)))
    by_probe: dict[str, list[int]] = {}
    for row, held in enumerate(found):
        by_probe.setdefault(held.probe.key, []).append(row)
    for place, rule in enumerate(rules):
        if not rule.holds:
            continue
        reach = range_of(rule, place)._replace(when=rule.when)
        over = [ban for ban in bans if ban.probe.key == rule.probe.key]
        always = {phase for ban in over if ban.when in (0, rule.when) for phase in _phases(ban.phase)}
        new = Held.at(_unless(reach, over, rule, place), rule, ("rules", place), always)
        for row in by_probe.setdefault(rule.probe.key, []):
            if (joined := _joined(found[row], new)) is not None:
                found[row] = joined
                break
        else:
            by_probe[rule.probe.key].append(len(found))
            found.append(new)
    for held in found:
        _check(held)
    return (*found, *_targets(rules)) if found else ()


def _targets(rules: Sequence[Edit]) -> Iterator[Held]:
    """The targets of redirects, a row for each and for each sense in which it is written.

    A row is held at the tokens of all the phases in which a redirect may write it. It has a condition only
    where all of these have the same.
    """
    groups: dict[tuple[str, bool], list[int]] = {}
    for place, rule in enumerate(rules):
        if rule.target is not None and rule.factor:
            groups.setdefault((rule.target.key, rule.factor > 0.0), []).append(place)
    for (key, rises), places in groups.items():
        write = next(target.write for place in places if (target := rules[place].target) is not None)
        row = write if rises else -write
        probe = Probe(f"{'target' if rises else 'against'}:{key}", row, row, linear=True)
        in_prompt, in_completion = (
            {rules[place].when for place in places if phase in _phases(rules[place].phase)}
            for phase in (Phase.PROMPT, Phase.COMPLETION)
        )
        yield Held(probe, _staying(in_prompt), _staying(in_completion), ("rules", places[0]))


def _staying(conditions: Collection[int]) -> tuple[Range, ...]:
    """Held where the rules leave it while any of the conditions may hold; 0 for always."""
    if not conditions:
        return _FREE
    when = next(iter(conditions)) if len(conditions) == 1 else 0
    return (_STAYS._replace(when=when), *_FREE[1:])


def _unless(reach: Range, bans: Sequence[Edit], rule: Edit, place: int) -> Range:
    """The range of a rule, open while a ban of its probe that has a condition of its own is in force.

    Where there is no lower limit a ban is the stricter one, and both may hold.
    """
    phases = set(_phases(rule.phase))
    own = {ban.when for ban in bans if ban.when not in (0, rule.when) and phases & set(_phases(ban.phase))}
    if not own or (len(own) > 1 and not reach.has_low):
        return reach
    if len(own) > 1:
        fault = f"{rule.probe.name} is held from below, and bans of it have more than one condition"
        raise SteeringError(fault, None, (("rules", place),))
    return reach._replace(unless=own.pop())


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
    return Range(_high(rule, value), _low(rule, value), gate=place if rule.above == 0.0 else -1)


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
    prompt, completion = _all_of(known.prompt, new.prompt), _all_of(known.completion, new.completion)
    if prompt is None or completion is None:
        return None
    return replace(known, prompt=prompt, completion=completion)


def _all_of(some: tuple[Range, ...], more: tuple[Range, ...]) -> tuple[Range, ...] | None:
    """The ranges of both, joined where that can be; None where there are too many for a row."""
    joined_ranges = [reach for reach in some if reach != OPEN]
    for added in (reach for reach in more if reach != OPEN):
        for place, known in enumerate(joined_ranges):
            if (joined := _both(known, added)) is not None:
                joined_ranges[place] = joined
                break
        else:
            joined_ranges.append(added)
    return None if len(joined_ranges) > RANGES else (*joined_ranges, *_FREE[len(joined_ranges) :])


def _both(one: Range, other: Range) -> Range | None:
    """The range in which both hold; None where it is not known before ‖x‖ and the conditions are."""
    if one[2:] != other[2:]:
        return None
    high = _stricter(one.high, other.high, OPEN.high, min)
    low = _stricter(one.low, other.low, OPEN.low, max)
    return None if high is None or low is None else one._replace(high=high, low=low)


def _stricter(one: Side, other: Side, open_side: Side, choose: Callable[[Side, Side], Side]) -> Side | None:
    if open_side in (one, other):
        return other if one == open_side else one
    return choose(one, other) if one.slope == other.slope == 0.0 else None


def _check(held: Held) -> None:
    """Raise SteeringError for ranges that may hold at once and in which nothing lies."""
    for ranges in (held.prompt, held.completion):
        for one, other in product(ranges, repeat=2):
            apart = 0 < one.when == other.unless or 0 < other.when == one.unless
            together = Range(one.high, other.low)
            if together.has_high and together.has_low and not apart and not _leaves_room(together):
                fault = f"the bounds of {held.probe.name} leave no value between them"
                raise SteeringError(fault, None, (held.place,))


def _leaves_room(reach: Range) -> bool:
    """Whether the low side lies under the high one whatever ‖x‖ is."""
    (base, constant, slope), (low_base, low_constant, low_slope) = reach.high, reach.low
    return max(base, constant) >= max(low_base, low_constant) and slope >= low_slope


def numbers_of(held: Held) -> list[list[list[float]]]:
    """The ranges of a row as a table keeps them [2, RANGES, RANGE]: for prompts, then for completions."""
    return [
        [[*reach.high, *reach.low, *(float(number) for number in reach[2:])] for reach in ranges]
        for ranges in (held.prompt, held.completion)
    ]
