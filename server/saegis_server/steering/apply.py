"""Apply: read, change and read again the activations of one site, for every running slot at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.projection import NO_LIMIT, project, times
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Bans, Rows, TableView

#: How far below its threshold a ban aims, as a share of ‖x‖. In half precision: the unit roundoff, which is
#: what writing x back may add. In float32 the sums themselves round as well, so sixteen times that.
_ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

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

    norm: ‖x‖ [B, Q, 1].
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


def _edit(x: Tensor, rows: Rows, prompt: Tensor, norms: frozenset[Norm], bounded: bool = False) -> Tensor:
    """One stage of edits: all rows read the same x. `bounded`: whether a slot's edits may have a bound."""
    numbers, scales = _Numbers.of(rows.numbers), _scales(x, norms)
    read, write = rows.vectors.unbind(1)
    q = _read(x, read)
    if norms == _PLAIN:
        change = _change(_activation(q, numbers), numbers, scales.norm, _applies(numbers, prompt))
    else:
        reads, writes = _factors(numbers, scales, x.shape[-1], norms)
        f = _activation(q * reads, numbers)
        change = _change(f, numbers, scales.norm, _applies(numbers, prompt)) * writes
    delta = times(change, write)
    return x + (_bounded(delta, scales.norm, numbers.tightness) if bounded else delta)


def _ban(x: Tensor, clean: Tensor, bans: Bans, prompt: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """The bans: push each active feature down by its strength, then project. Also returns how many fired.

    A token that nothing has touched keeps its bits while it is allowed; one that moves, or was moved by the
    stages before (x is no longer `clean`), will be rounded, and so has to land further inside.
    """
    numbers = _Numbers.of(bans.numbers)
    basis, write = bans.vectors.unbind(1)
    rows, gram, gram_pinv, writes = bans.squares.unbind(1)
    lengths, limits, interior, descent, step = bans.lines[:, :, None].unbind(1)
    y = _read(x, basis)
    norm = x.norm(dim=-1, keepdim=True)
    f = _activation(_read(y, rows) * lengths, numbers)
    applies = _applies(numbers, prompt)
    change = _change(f, numbers, norm, applies)
    away = times(change, write)
    largest = torch.maximum(norm, (x + away).norm(dim=-1, keepdim=True))
    pushed = y + times(change, writes)
    limits = torch.where(applies, limits, NO_LIMIT)
    touched = (_read(pushed, rows) > limits - _ROUNDING[torch.float32] * largest) | (change != 0.0)
    moves = touched.any(-1, keepdim=True) | (x != clean).any(-1, keepdim=True)
    margin = torch.where(moves, rounding * largest, 0.0)
    allowed = limits - margin
    move = project(pushed, rows, allowed, gram, gram_pinv, step, interior + margin * descent)
    fired = ((f > 0.0) & applies).sum(-1, dtype=torch.float32)
    return x + (away + times(move, basis)), fired


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
    """Steer the activations of one site: what is read, edits, rules, bans, watches again, in this order.

    x: [B, Q, d], B slots of Q tokens each, any float dtype (the arithmetic is float32);
    view: the tables' rows of those B slots; prompt: bool [B, Q], which tokens belong to a prompt;
    norms: the normalisations that any row may use, fixed when the site is built. The edits' move is held
    within the slot's bound, of ‖x‖ as it comes in.
    Returns x' in x's dtype and the readings. A token that no row changes keeps its bits.
    """
    clean = x.to(torch.float32)
    before, guarded = _watch(clean, view.watches, norms), _watch(clean, view.guards, norms)
    steered = _edit(clean, view.edits, prompt, norms, bounded=True)
    steered = _edit(steered, view.rules, prompt, norms)
    steered, fired = _ban(steered, clean, view.bans, prompt, _ROUNDING[x.dtype])
    result = steered.to(x.dtype)
    final = result.to(torch.float32)
    after = _watch(final, view.watches, norms)
    moved = (final - clean).norm(dim=-1)
    relative = moved / clean.norm(dim=-1).clamp(min=1e-30)
    return result, Readings(before, after, guarded, moved > 0.0, fired, relative)
