"""Apply: read, change and read again the activations of one site, for every token of a step at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.bounds import NO_LIMIT
from saegis_server.steering.projection import outside, project, rounding
from saegis_server.steering.ranking import Moment
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Bounds, Rows, TableView
from saegis_server.steering.tokens import Spread, Tokens

#: The normalisations of a site whose SAEs have none.
_PLAIN = frozenset({Norm.NONE})


#: From the guards' readings [T, G] of a site to which conditions hold there, bool [T, 1 + C]: see
#: `Evaluator`.
Gates = Callable[[Tensor], Tensor]
#: From activations x [T, d] to the cuts there at a moment, [T, n]: see `Ranking`.
Cuts = Callable[[Tensor, Moment], Tensor]


class Readings(NamedTuple):
    """What happened at one site to T tokens; K watched rows, G guards.

    watched_before and watched_after: float32 [T, K], the watches' values on the clean and on the final x;
    guarded: float32 [T, G], those of the guards on the clean x;
    edited: bool [T]; bans_fired: float32 [T], how many banned features were active when their
    turn came; relative_norm: float32 [T], ‖x' − x‖/‖x‖. acted: bool [T, E + R + K], of the rows of the edits,
    the rules and what is held, which asked for a change or, of bans, were active. observed: float32 [T, O],
    the values of what is observed on the clean x.
    """

    watched_before: Tensor
    watched_after: Tensor
    guarded: Tensor
    edited: Tensor
    bans_fired: Tensor
    relative_norm: Tensor
    acted: Tensor
    observed: Tensor


class _Scales(NamedTuple):
    """What rows may need of each token, [T, 1]: ‖x‖, and its standard deviation if any row uses it."""

    norm: Tensor
    deviation: Tensor | None


class _Numbers(NamedTuple):
    """The columns of each token's rows, [T, K] each, in the order of Column; [1, K] where all are of one
    slot.
    """

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
    when: Tensor
    rank: Tensor

    @classmethod
    def of(cls, numbers: Tensor, tokens: Tokens) -> "_Numbers":
        return cls(*tokens.own(numbers).unbind(1))


def _scales(x: Tensor, norms: frozenset[Norm]) -> _Scales:
    deviation = x.std(-1, keepdim=True) if Norm.LAYER_NORM in norms else None
    return _Scales(x.norm(dim=-1, keepdim=True), deviation)


def _factors(numbers: _Numbers, scales: _Scales, width: int, norms: frozenset[Norm]) -> tuple[Tensor, Tensor]:
    """What to multiply reads and writes by, [T, K], according to each row's normalisation."""
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


def _read(x: Tensor, rows: Tensor, tokens: Tokens) -> Tensor:
    """r·x of each row: x [T, d], rows [S, K, d] → [T, K]."""
    return tokens.times(x, rows.transpose(1, 2))


def _activation(q: Tensor, numbers: _Numbers, cut: Tensor | None) -> Tensor:
    """The value f of each row from its read q, [T, K] both: φ of relu, jumprelu, gated, topk or identity.

    cut: the cuts of each token [T, n]; None where no row may have a rank.
    """
    value = torch.maximum(numbers.gain * q + numbers.bias, numbers.floor)
    active = q > numbers.threshold
    if cut is not None:
        active = active & (value > _chosen(cut, numbers.rank))
    return torch.where(active, value, 0.0)


def _in_phase(numbers: _Numbers, prompt: Tensor) -> Tensor:
    """Where the phase of each row holds, bool [T, K]; nowhere for an empty row."""
    return torch.where(prompt[:, None], numbers.in_prompt, numbers.in_completion) > 0.0


def _chosen(of_token: Tensor, number: Tensor) -> Tensor:
    """What each token has at each number, such as whether that condition holds there: of_token [T, n], number
    [T or 1, ..] → [T, ..]."""
    places = number.to(torch.int64).expand(of_token.shape[0], *number.shape[1:])
    return of_token.gather(1, places.flatten(1)).view(places.shape)


def _change(f: Tensor, numbers: _Numbers, norm: Tensor, applies: Tensor) -> Tensor:
    """The change f' − f that each row asks for, [T, K]; zero where its gate or its phase does not hold.

    norm: the ‖x‖ [T, 1] of which fractions are.
    """
    unit = torch.where(numbers.relative > 0.0, norm, 1.0)
    wanted = numbers.a * f + unit * numbers.b
    change = torch.clamp(wanted, unit * numbers.lo, unit * numbers.hi) - f
    return torch.where(applies & (f > numbers.gate), change, 0.0)


def _bounded(delta: Tensor, norm: Tensor, tightness: Tensor) -> Tensor:
    """The move `delta` [T, d], scaled down where it is longer than `norm` [T, 1] / tightness.

    tightness [T or 1, K]: of each row; the largest counts. A factor of 1 leaves every bit as it was.
    """
    length = delta.norm(dim=-1, keepdim=True) * tightness.amax(-1, keepdim=True)
    return delta * torch.where(length > norm, norm / length, 1.0)


class _Stage(NamedTuple):
    """What the stages of one site share: the tokens, which conditions hold, ‖x‖ [T, 1] as it comes in."""

    tokens: Tokens
    on: Tensor
    norm: Tensor
    norms: frozenset[Norm]

    def applies(self, numbers: _Numbers) -> Tensor:
        """Where the phase and the condition of each row hold, bool [T, K]."""
        return _in_phase(numbers, self.tokens.prompt) & _chosen(self.on, numbers.when)

    def edit(
        self, x: Tensor, rows: Rows, conditional: bool, cut: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One stage of edits: all rows read the same x, and fractions are of ‖x‖ as it came in.

        conditional: whether rows may have conditions, which a request's own edits have not. cut: that of x.
        Returns the move
        [T, d], the rows' values before it [T, K], and which rows ask for a change, bool [T, K].
        """
        numbers = _Numbers.of(rows.numbers, self.tokens)
        read, write = rows.vectors.unbind(1)
        q = _read(x, read, self.tokens)
        applies = self.applies(numbers) if conditional else _in_phase(numbers, self.tokens.prompt)
        if self.norms == _PLAIN:
            f = _activation(q, numbers, cut)
            change = _change(f, numbers, self.norm, applies)
        else:
            reads, writes = _factors(numbers, _scales(x, self.norms), x.shape[-1], self.norms)
            f = _activation(q * reads, numbers, cut)
            change = _change(f, numbers, self.norm, applies) * writes
        return self.tokens.times(change, write), f, change != 0.0


class _Range(NamedTuple):
    """Where the rows that are held may lie at each token, [T, K] each; room: half of what is between."""

    low: Tensor
    high: Tensor
    room: Tensor

    @classmethod
    def of(cls, bounds: Bounds, stage: _Stage, ruled: Tensor, left: Tensor) -> "_Range":
        """The strictest of each row's ranges whose conditions hold.

        ruled: the values of the rules [T, R]; left: the least reads [T, K] of rows that stay where the rules
        left them.
        """
        own = stage.tokens.own(bounds.ranges)
        chosen = torch.where(stage.tokens.prompt[:, None, None, None], own[:, 0], own[:, 1])
        base, constant, slope, low_base, low_constant, low_slope, gate, when, unless, stays = chosen.unbind(2)
        norm = stage.norm[:, None]
        active = _chosen(stage.on, when) & ~((unless > 0.0) & _chosen(stage.on, unless))
        is_on = (gate < 0.0) | (_chosen(ruled, gate.clamp(min=0.0)) > 0.0)
        high = torch.where(active, torch.maximum(base, constant + slope * norm), NO_LIMIT).amin(1)
        low = torch.maximum(low_base, low_constant + low_slope * norm + stays * left[:, None])
        low = torch.where(active & is_on, low, -NO_LIMIT).amax(1)
        return cls(low, high, 0.5 * (high - low))

    def inside(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """The range narrowed by a margin [T, 1] on each side, or to its middle where it is that narrow."""
        kept = torch.minimum(self.room, margin)
        return self.low + kept, self.high - kept


def _hold(
    x: Tensor,
    clean: Tensor,
    bounds: Bounds,
    stage: _Stage,
    ruled: Tensor,
    dtype: torch.dtype,
    cut: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Bans and bounds: push each active banned feature down by its strength, then project what is held into
    its range. Also returns which bans fired, bool [T, K].

    ruled: the values of the rules' rows; dtype: that in which the result is written; cut: that of x. A token
    that nothing has touched keeps its bits while it is allowed; one that moves, or was moved by the stages
    before (x is no longer `clean`), will be rounded, and so has to land further inside.
    """
    tokens, norm = stage.tokens, stage.norm
    times = tokens.times
    numbers, lost = _Numbers.of(bounds.numbers, tokens), rounding(dtype, x.shape[-1])
    basis, write = bounds.vectors.unbind(1)
    rows, gram, gram_pinv, fixed_pinv, writes = bounds.squares.unbind(1)
    lengths, descent, sides, step, reach = tokens.own(bounds.lines).unbind(1)
    columns = rows.transpose(1, 2)
    y, size = _read(x, basis, tokens), x.norm(dim=-1, keepdim=True)
    level = times(y, columns)
    # A target that nothing pushes must not count as touched, however its read rounds.
    allowed = _Range.of(bounds, stage, ruled, level - lost.relative * (norm + 2.0 * size) - lost.absolute)
    f, applies = _activation(level * lengths, numbers, cut), stage.applies(numbers)
    change = _change(f, numbers, norm, applies)
    fired = (f > 0.0) & applies
    pushed = x + times(change, write)
    level = times(y + times(change, writes), columns)
    largest = torch.maximum(size, pushed.norm(dim=-1, keepdim=True))
    noise = lost.arithmetic * largest
    touched = (level > allowed.high - noise) | (level < allowed.low + noise) | (change != 0.0)
    moves = touched.any(-1, keepdim=True) | (x != clean).any(-1, keepdim=True)
    margin = torch.where(moves, lost.relative * norm + noise, 0.0)
    low, high = allowed.inside(margin)
    landed = pushed + times(project(tokens, level, low, high, gram, gram_pinv, rows, step), basis)
    # Read again what was written: the sums above round by what they passed through, not by where they end.
    level = times(_read(landed, basis, tokens), columns)
    margin = lost.relative * landed.norm(dim=-1, keepdim=True) + lost.absolute
    beyond = torch.where(sides == 0.0, outside(level, *allowed.inside(margin)), 0.0)
    correction = -times(times(beyond, fixed_pinv), rows)
    level = level + times(correction, columns)
    over = torch.maximum(level - allowed.high, allowed.low - level)
    over = torch.where(sides == 0.0, -NO_LIMIT, over).amax(-1, keepdim=True)
    correction = correction + torch.clamp((over + margin) * reach[..., :1], min=0.0) * descent
    return landed + times(torch.where(moves, correction, 0.0), basis), fired


def values_of(
    x: Tensor, watches: Rows, tokens: Tokens, norms: frozenset[Norm], cut: Tensor | None = None
) -> Tensor:
    """The value of each row that is only read, [T, K]; NaN where its read is, for conditions must not miss
    it. x: float32 [T, d]; norms: the normalisations that any row may use; cut: the cuts of x [T, n], None
    where no row may have a rank."""
    if not watches.per_slot:
        return x[:, :0]
    return values_from(_read(x, watches.vectors[:, 0], tokens), x, watches.numbers, tokens, norms, cut)


def values_from(
    q: Tensor,
    x: Tensor,
    numbers: Tensor,
    tokens: Tokens,
    norms: frozenset[Norm],
    cut: Tensor | None = None,
) -> Tensor:
    """The same from the product q [T, K] of the rows with x, and their numbers [S, C, K]."""
    own = _Numbers.of(numbers, tokens)
    if norms != _PLAIN:
        reads, _ = _factors(own, _scales(x, norms), x.shape[-1], norms)
        q = q * reads
    # Only NaN is unequal to itself; the compiler has no vector instruction for torch.isnan on a CPU.
    return torch.where(q != q, q, _activation(q, own, cut))


def read_clean(
    clean: Tensor,
    norm: Tensor,
    view: TableView,
    tokens: Tokens,
    norms: frozenset[Norm],
    gates: Gates | None,
    cut: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, _Stage]:
    """What is read of the clean activations [T, d], of norm [T, 1], before anything is edited: the values of
    the watches, of the guards and of what is observed, and the stage of the edits that follow."""
    before, guarded = (
        values_of(clean, view.watches, tokens, norms, cut),
        values_of(clean, view.guards, tokens, norms, cut),
    )
    everybody = Tokens(tokens.prompt, Spread.ONE)
    observed = (
        before[:, :0] if view.observed is None else values_of(clean, view.observed, everybody, norms, cut)
    )
    on = torch.ones_like(tokens.prompt)[:, None] if gates is None else gates(guarded)
    return before, guarded, observed, _Stage(tokens, on, norm, norms)


def apply(
    x: Tensor,
    view: TableView,
    tokens: Tokens,
    norms: frozenset[Norm] = _PLAIN,
    gates: Gates | None = None,
    cuts: Cuts | None = None,
) -> tuple[Tensor, Readings]:
    """Steer the activations of one site: what is read, edits, rules, bans and bounds, watches again, in this
    order.

    x: [T, d], any float dtype (the arithmetic is float32); view: the tables' rows of the tokens' slots;
    norms: the normalisations that any row may use, fixed when the site is built; gates: which conditions
    hold, from what the guards read here; None where no row has one; cuts: above which values rows
    with a rank are active; None where no row may have one. The edits' move is held within the slot's
    bound. All fractions are of ‖x‖ as it comes in, so that no edit stretches them. Returns x' in x's dtype
    and the readings. A token that no row changes keeps its bits. What the view has no rows of costs nothing.
    """
    clean = x.to(torch.float32)
    norm = clean.norm(dim=-1, keepdim=True)

    def cut_of(x: Tensor, moment: Moment) -> Tensor | None:
        return None if cuts is None else cuts(x, moment)

    cut = cut_of(clean, Moment.CLEAN)
    before, guarded, observed, stage = read_clean(clean, norm, view, tokens, norms, gates, cut)
    edits = rules = fired = torch.zeros_like(clean[:, :0], dtype=torch.bool)
    steered, ruled = clean, torch.zeros_like(norm)
    if view.edits.per_slot:
        move, _, edits = stage.edit(clean, view.edits, conditional=False, cut=cut)
        steered = clean + _bounded(move, norm, _Numbers.of(view.edits.numbers, tokens).tightness)
    if view.rules.per_slot:
        cut = cut_of(steered, Moment.RULES)
        move, ruled, rules = stage.edit(steered, view.rules, conditional=True, cut=cut)
        steered = steered + move
    if view.bounds.per_slot:
        cut = cut_of(steered, Moment.BANS)
        steered, fired = _hold(steered, clean, view.bounds, stage, ruled, x.dtype, cut)
    result = steered.to(x.dtype)
    final = result.to(torch.float32)
    after = values_of(final, view.watches, tokens, norms, cut_of(final, Moment.WRITTEN))
    # Bit for bit: the square of a small move may be zero.
    edited = (final != clean).any(-1)
    relative = (final - clean).norm(dim=-1) / norm[..., 0].clamp(min=1e-30)
    acted = torch.cat((edits, rules, fired), -1)
    return result, Readings(
        before, after, guarded, edited, fired.sum(-1, dtype=torch.float32), relative, acted, observed
    )
