"""Apply: read, change and read again the activations of one site, for every running slot at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.projection import NO_LIMIT, project, times
from saegis_server.steering.rows import Norm, Phase
from saegis_server.steering.table import Bans, Column, Rows, TableView, Watches

#: How far below its threshold a ban aims, as a share of ‖x‖. In half precision: the unit roundoff, which is
#: what writing x back may add. In float32 the sums themselves round as well, so sixteen times that.
_ROUNDING = {torch.float32: 2.0**-20, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


class Readings(NamedTuple):
    """What happened at one site. B groups of Q tokens; K watched rows.

    watched_before and watched_after: float32 [B, Q, K], the watches on the clean and on the final x;
    edited: bool [B, Q]; bans_fired: float32 [B, Q], how many banned features were active when their
    turn came; relative_norm: float32 [B, Q], ‖x' − x‖/‖x‖.
    """

    watched_before: Tensor
    watched_after: Tensor
    edited: Tensor
    bans_fired: Tensor
    relative_norm: Tensor


class _Scales(NamedTuple):
    """What rows may need of each token, [B, Q, 1]: ‖x‖, and its standard deviation if any row uses it."""

    norm: Tensor
    deviation: Tensor | None


def _scales(x: Tensor, norms: frozenset[Norm]) -> _Scales:
    deviation = x.std(-1, keepdim=True) if Norm.LAYER_NORM in norms else None
    return _Scales(x.norm(dim=-1, keepdim=True), deviation)


def _column(numbers: Tensor, column: Column) -> Tensor:
    return numbers[:, None, :, column]


def _factors(numbers: Tensor, scales: _Scales, width: int, norms: frozenset[Norm]) -> tuple[Tensor, Tensor]:
    """What to multiply reads and writes by, [B, Q, K], according to each row's normalisation."""
    kind = _column(numbers, Column.NORM)
    reads = writes = torch.ones_like(kind)
    if Norm.CONSTANT_NORM in norms:
        chosen = kind == float(Norm.CONSTANT_NORM)
        root = width**0.5
        reads = torch.where(chosen, root / scales.norm, reads)
        writes = torch.where(chosen, scales.norm / root, writes)
    if Norm.LAYER_NORM in norms and scales.deviation is not None:
        chosen = kind == float(Norm.LAYER_NORM)
        reads = torch.where(chosen, 1.0 / (scales.deviation + 1e-5), reads)
        writes = torch.where(chosen, scales.deviation, writes)
    return reads, writes


def activation(q: Tensor, numbers: Tensor) -> Tensor:
    """The value f of each row from its read q, [B, Q, K] both: φ of relu, jumprelu, gated or identity."""
    value = _column(numbers, Column.GAIN) * q + _column(numbers, Column.VALUE_BIAS)
    active = q + _column(numbers, Column.GATE_BIAS) > _column(numbers, Column.THRESHOLD)
    rectified = torch.where(active, value.clamp(min=0.0), 0.0)
    return torch.where(_column(numbers, Column.LINEAR) > 0.0, value, rectified)


def edited(f: Tensor, numbers: Tensor, norm: Tensor, prompt: Tensor) -> Tensor:
    """The change f' − f that each row asks for, [B, Q, K]; zero where its gate or its phase does not hold.

    norm: ‖x‖ [B, Q, 1]; prompt: bool [B, Q], which tokens belong to a prompt.
    """
    unit = torch.where(_column(numbers, Column.RELATIVE) > 0.0, norm, 1.0)
    wanted = _column(numbers, Column.A) * f + unit * _column(numbers, Column.B)
    low, high = unit * _column(numbers, Column.LO), unit * _column(numbers, Column.HI)
    change = torch.minimum(torch.maximum(wanted, low), high) - f
    gate = _applies(numbers, prompt) & ((_column(numbers, Column.ONLY_IF_ACTIVE) == 0.0) | (f > 0.0))
    return torch.where(gate, change, 0.0)


def _applies(numbers: Tensor, prompt: Tensor) -> Tensor:
    phase = _column(numbers, Column.PHASE)
    in_phase = (phase == float(Phase.ALL)) | ((phase == float(Phase.PROMPT)) == prompt[:, :, None])
    return in_phase & (_column(numbers, Column.IS_ROW) > 0.0)


def _edit(x: Tensor, rows: Rows, prompt: Tensor, norms: frozenset[Norm]) -> Tensor:
    """One stage of edits: all rows read the same x."""
    scales = _scales(x, norms)
    reads, writes = _factors(rows.numbers, scales, x.shape[-1], norms)
    f = activation(times(x, rows.read.transpose(1, 2)) * reads, rows.numbers)
    change = edited(f, rows.numbers, scales.norm, prompt)
    return x + times(change * writes, rows.write)


def _ban(x: Tensor, clean: Tensor, bans: Bans, prompt: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """The bans: push each active feature down by its strength, then project. Also returns how many fired.

    A token that nothing has touched keeps its bits while it is allowed; one that moves, or was moved by the
    stages before (x is no longer `clean`), will be rounded, and so has to land further inside.
    """
    y = times(x, bans.basis.transpose(1, 2))
    norm = x.norm(dim=-1, keepdim=True)
    q = times(y, bans.rows.transpose(1, 2)) * bans.lengths[:, None, :]
    f = activation(q, bans.numbers)
    change = edited(f, bans.numbers, norm, prompt)
    away = times(change, bans.write)
    largest = torch.maximum(norm, (x + away).norm(dim=-1, keepdim=True))
    pushed = y + times(change, bans.writes)
    applies = _applies(bans.numbers, prompt)
    limits = torch.where(applies, bans.limits[:, None, :], NO_LIMIT)
    level = times(pushed, bans.rows.transpose(1, 2))
    touched = (level > limits - _ROUNDING[torch.float32] * largest) | (change != 0.0)
    moves = touched.any(-1, keepdim=True) | (x != clean).any(-1, keepdim=True)
    margin = torch.where(moves, rounding * largest, 0.0)
    move = project(
        pushed,
        bans.rows,
        limits - margin,
        bans.gram,
        bans.gram_pinv,
        bans.step[:, None, None],
        bans.interior[:, None, :] + margin * bans.descent[:, None, :],
    )
    fired = ((f > 0.0) & applies).sum(-1, dtype=torch.float32)
    return x + (away + times(move, bans.basis)), fired


def _watch(x: Tensor, watches: Watches, norms: frozenset[Norm]) -> Tensor:
    reads, _ = _factors(watches.numbers, _scales(x, norms), x.shape[-1], norms)
    return activation(times(x, watches.read.transpose(1, 2)) * reads, watches.numbers)


def apply(
    x: Tensor, view: TableView, prompt: Tensor, norms: frozenset[Norm] = frozenset({Norm.NONE})
) -> tuple[Tensor, Readings]:
    """Steer the activations of one site: watches, edits, rules, bans, watches again, in this order.

    x: [B, Q, d], B slots of Q tokens each, any float dtype (the arithmetic is float32);
    view: the tables' rows of those B slots; prompt: bool [B, Q], which tokens belong to a prompt;
    norms: the normalisations that any row may use, fixed when the site is built.
    Returns x' in x's dtype and the readings. A token that no row changes keeps its bits.
    """
    clean = x.to(torch.float32)
    before = _watch(clean, view.watches, norms)
    steered = _edit(clean, view.edits, prompt, norms)
    steered = _edit(steered, view.rules, prompt, norms)
    steered, fired = _ban(steered, clean, view.bans, prompt, _ROUNDING[x.dtype])
    result = steered.to(x.dtype)
    final = result.to(torch.float32)
    after = _watch(final, view.watches, norms)
    moved = (final - clean).norm(dim=-1)
    relative = moved / clean.norm(dim=-1).clamp(min=1e-30)
    return result, Readings(before, after, moved > 0.0, fired, relative)
