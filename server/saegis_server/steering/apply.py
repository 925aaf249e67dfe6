"""Apply: read, change and read again the activations of one site, for every running slot at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.bounds import NO_LIMIT
from saegis_server.steering.projection import outside, project, rounding, times
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Bounds, Rows, TableView

#: The normalisations of a site whose SAEs have none.
_PLAIN = frozenset({Norm.NONE})


class Readings(NamedTuple):
    """What happened at one site. B groups of Q tokens; K watched rows, G guards.

    watched_before and watched_after: float32 [B, Q, K], the watches' values on the clean and on the final x;
    guarded: float32 [B, Q, G], those of the guards on the clean x;
    edited: bool [B, Q]; bans_fired: float32 [B, Q], how many banned features were active when their
    turn came; relative_norm: float32 [B, Q], ‖x' − x‖/‖x‖.
    """

    watched_before: Tensor
    watched_after: Tensor
    guarded: Tensor
    edited: Tensor
    bans_fired: Tensor
    relative_norm: Tensor


class _Scales(NamedTuple):
    """What rows may need of each token, [B, Q, 1]: ‖x‖, and its standard deviation if any row uses it."""

    norm: Tensor
    deviation: Tensor | None


class _Numbers(NamedTuple):
    """The columns of a table's rows, [B, 1, K] each, in the order of Column."""

    threshold: Tensor
    gain: Tensor
    bias: Tensor
    floor: Tensor
    norm: Tensor
    a: Tensor
    b: Tensor
    lo: Tensor
    hi: Tensor
    gate: Tensor
    relative: Tensor
    in_prompt: Tensor
    in_completion: Tensor
    tightness: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> "_Numbers":
        return cls(*numbers[:, :, None].unbind(1))


def _scales(x: Tensor, norms: frozenset[Norm]) -> _Scales:
    deviation = x.std(-1, keepdim=True) if Norm.LAYER_NORM in norms else None
    return _Scales(x.norm(dim=-1, keepdim=True), deviation)


def _factors(numbers: _Numbers, scales: _Scales, width: int, norms: frozenset[Norm]) -> tuple[Tensor, Tensor]:
    """What to multiply reads and writes by, [B, Q, K], according to each row's normalisation."""
    reads = writes = torch.ones_like(numbers.norm)
    if Norm.CONSTANT_NORM in norms:
        chosen = numbers.norm == Norm.CONSTANT_NORM.value
        root = width**0.5
        reads = torch.where(chosen, root / scales.norm, reads)
        writes = torch.where(chosen, scales.norm / root, writes)
    if Norm.LAYER_NORM in norms and scales.deviation is not None:
        chosen = numbers.norm == Norm.LAYER_NORM.value
        reads = torch.where(chosen, 1.0 / (scales.deviation + 1e-5), reads)
        writes = torch.where(chosen, scales.deviation, writes)
    return reads, writes


def _read(x: Tensor, rows: Tensor) -> Tensor:
    """r·x of each row: x [B, Q, d], rows [B, K, d] → [B, Q, K]."""
    return times(x, rows.transpose(1, 2))


def _activation(q: Tensor, numbers: _Numbers) -> Tensor:
    """The value f of each row from its read q, [B, Q, K] both: φ of relu, jumprelu, gated or identity."""
    value = torch.maximum(numbers.gain * q + numbers.bias, numbers.floor)
    return torch.where(q > numbers.threshold, value, 0.0)


def _applies(numbers: _Numbers, prompt: Tensor) -> Tensor:
    """Where the phase of each row holds, bool [B, Q, K]; nowhere for an empty row."""
    return torch.where(prompt[:, :, None], numbers.in_prompt, numbers.in_completion) > 0.0


def _change(f: Tensor, numbers: _Numbers, norm: Tensor, applies: Tensor) -> Tensor:
    """The change f' − f that each row asks for, [B, Q, K]; zero where its gate or its phase does not hold.

    norm: the ‖x‖ [B, Q, 1] of which fractions are.
    """
    unit = torch.where(numbers.relative > 0.0, norm, 1.0)
    wanted = numbers.a * f + unit * numbers.b
    change = torch.clamp(wanted, unit * numbers.lo, unit * numbers.hi) - f
    return torch.where(applies & (f > numbers.gate), change, 0.0)


def _bounded(delta: Tensor, norm: Tensor, tightness: Tensor) -> Tensor:
    """The move `delta` [B, Q, d], scaled down where it is longer than `norm` [B, Q, 1] / tightness.

    tightness [B, 1, K]: of each row; the largest counts. A factor of 1 leaves every bit as it was.
    """
    length = delta.norm(dim=-1, keepdim=True) * tightness.amax(-1, keepdim=True)
    return delta * torch.where(length > norm, norm / length, 1.0)


def _edit(
    x: Tensor, rows: Rows, prompt: Tensor, norms: frozenset[Norm], norm: Tensor
) -> tuple[Tensor, Tensor]:
    """One stage of edits: all rows read the same x, and fractions are of `norm` [B, Q, 1].

    Returns the move [B, Q, d] and the rows' values before it [B, Q, K].
    """
    numbers = _Numbers.of(rows.numbers)
    read, write = rows.vectors.unbind(1)
    q = _read(x, read)
    if norms == _PLAIN:
        f = _activation(q, numbers)
        change = _change(f, numbers, norm, _applies(numbers, prompt))
    else:
        reads, writes = _factors(numbers, _scales(x, norms), x.shape[-1], norms)
        f = _activation(q * reads, numbers)
        change = _change(f, numbers, norm, _applies(numbers, prompt)) * writes
    return times(change, write), f


class _Range(NamedTuple):
    """Where the rows that are held may lie at each token, [B, Q, K] each; room: half of what is between."""

    low: Tensor
    high: Tensor
    room: Tensor

    @classmethod
    def of(cls, bounds: Bounds, prompt: Tensor, norm: Tensor, ruled: Tensor) -> "_Range":
        """norm: ‖x‖ [B, Q, 1] as it comes into the site; ruled: the values of the rules' rows [B, Q, R]."""
        in_prompt, in_completion = bounds.ranges[:, None].tensor_split(2, dim=2)
        own = torch.where(prompt[:, :, None, None], in_prompt, in_completion)
        base, constant, slope, low_base, low_constant, low_slope, gate = own.unbind(2)
        high = torch.maximum(base, constant + slope * norm)
        low = torch.maximum(low_base, low_constant + low_slope * norm)
        is_on = ruled.gather(-1, gate.clamp(min=0.0).to(torch.int64)) > 0.0
        low = torch.where((gate < 0.0) | is_on, low, -NO_LIMIT)
        return cls(low, high, 0.5 * (high - low))

    def inside(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """The range narrowed by a margin [B, Q, 1] on each side, or to its middle where it is that narrow."""
        kept = torch.minimum(self.room, margin)
        return self.low + kept, self.high - kept


def _hold(
    x: Tensor, clean: Tensor, bounds: Bounds, prompt: Tensor, ruled: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Bans and bounds: push each active banned feature down by its strength, then project what is held into
    its range. Also returns how many bans fired.

    ruled: the values of the rules' rows; dtype: that in which the result is written. A token that nothing has
    touched keeps its bits while it is allowed; one that moves, or was moved by the stages before (x is no
    longer `clean`), will be rounded, and so has to land further inside.
    """
    numbers, lost = _Numbers.of(bounds.numbers), rounding(dtype, x.shape[-1])
    basis, write = bounds.vectors.unbind(1)
    rows, gram, gram_pinv, fixed_pinv, writes = bounds.squares.unbind(1)
    lengths, descent, sides, step, reach = bounds.lines[:, :, None].unbind(1)
    columns = rows.transpose(1, 2)
    norm, y = clean.norm(dim=-1, keepdim=True), _read(x, basis)
    allowed = _Range.of(bounds, prompt, norm, ruled)
    f, applies = _activation(times(y, columns) * lengths, numbers), _applies(numbers, prompt)
    change = _change(f, numbers, norm, applies)
    fired = ((f > 0.0) & applies).sum(-1, dtype=torch.float32)
    pushed = x + times(change, write)
    level = times(y + times(change, writes), columns)
    largest = torch.maximum(x.norm(dim=-1, keepdim=True), pushed.norm(dim=-1, keepdim=True))
    noise = lost.arithmetic * largest
    touched = (level > allowed.high - noise) | (level < allowed.low + noise) | (change != 0.0)
    moves = touched.any(-1, keepdim=True) | (x != clean).any(-1, keepdim=True)
    margin = torch.where(moves, lost.relative * norm + noise, 0.0)
    landed = pushed + times(project(level, *allowed.inside(margin), gram, gram_pinv, rows, step), basis)
    # Read again what was written: the sums above round by what they passed through, not by where they end.
    level, margin = times(_read(landed, basis), columns), lost.relative * landed.norm(dim=-1, keepdim=True)
    margin = margin + lost.absolute
    beyond = torch.where(sides == 0.0, outside(level, *allowed.inside(margin)), 0.0)
    correction = -times(times(beyond, fixed_pinv), rows)
    level = level + times(correction, columns)
    over = torch.maximum(level - allowed.high, allowed.low - level)
    over = torch.where(sides == 0.0, -NO_LIMIT, over).amax(-1, keepdim=True)
    correction = correction + torch.clamp((over + margin) * reach[..., :1], min=0.0) * descent
    return landed + times(torch.where(moves, correction, 0.0), basis), fired


def _watch(x: Tensor, watches: Rows, norms: frozenset[Norm]) -> Tensor:
    """The value of each watched row, [B, Q, K]; NaN where its read is, for conditions must not miss it."""
    numbers = _Numbers.of(watches.numbers)
    q = _read(x, watches.vectors[:, 0])
    if norms != _PLAIN:
        reads, _ = _factors(numbers, _scales(x, norms), x.shape[-1], norms)
        q = q * reads
    return torch.where(torch.isnan(q), q, _activation(q, numbers))


def apply(
    x: Tensor, view: TableView, prompt: Tensor, norms: frozenset[Norm] = _PLAIN
) -> tuple[Tensor, Readings]:
    """Steer the activations of one site: what is read, edits, rules, bans and bounds, watches again, in this
    order.

    x: [B, Q, d], B slots of Q tokens each, any float dtype (the arithmetic is float32);
    view: the tables' rows of those B slots; prompt: bool [B, Q], which tokens belong to a prompt;
    norms: the normalisations that any row may use, fixed when the site is built. The edits' move is held
    within the slot's bound. All fractions are of ‖x‖ as it comes in, so that no edit stretches them.
    Returns x' in x's dtype and the readings. A token that no row changes keeps its bits.
    """
    clean = x.to(torch.float32)
    norm = clean.norm(dim=-1, keepdim=True)
    before, guarded = _watch(clean, view.watches, norms), _watch(clean, view.guards, norms)
    move, _ = _edit(clean, view.edits, prompt, norms, norm)
    steered = clean + _bounded(move, norm, _Numbers.of(view.edits.numbers).tightness)
    move, ruled = _edit(steered, view.rules, prompt, norms, norm)
    steered, fired = _hold(steered + move, clean, view.bounds, prompt, ruled, x.dtype)
    result = steered.to(x.dtype)
    final = result.to(torch.float32)
    after = _watch(final, view.watches, norms)
    # Bit for bit: the square of a small move may be zero.
    edited = (final != clean).any(-1)
    relative = (final - clean).norm(dim=-1) / norm[..., 0].clamp(min=1e-30)
    return result, Readings(before, after, guarded, edited, fired, relative)
