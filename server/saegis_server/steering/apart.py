"""Apart: edits of what is read at one place and written at another, as of a transcoder's features.

f is read at the first place, Σ (f' − f)·w is added at the second, in the same step. Nothing that is written
changes what is read, so only a request's edits act here, and the watches read the same before and after.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.steering.apply import (
    _PLAIN,
    Cuts,
    Gates,
    Readings,
    _bounded,
    _Numbers,
    read_clean,
)
from saegis_server.steering.ranking import Moment
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import TableView
from saegis_server.steering.tokens import Tokens


class Waiting(NamedTuple):
    """What was read of T tokens, and what waits to be written: move, float32 [T, d]; tightness [T or 1, E],
    see Column; readings, whose move is not known yet."""

    move: Tensor
    tightness: Tensor
    readings: Readings


def read_apart(
    x: Tensor,
    view: TableView,
    tokens: Tokens,
    norms: frozenset[Norm] = _PLAIN,
    gates: Gates | None = None,
    cuts: Cuts | None = None,
) -> Waiting:
    """Read the activations x [T, d] of the first place, and what the edits of the tokens' slots make of them.

    The arguments are those of `apply`; the view has no rules, bans or bounds that act.
    """
    clean = x.to(torch.float32)
    cut = None if cuts is None else cuts(clean, Moment.CLEAN)
    norm = clean.norm(dim=-1, keepdim=True)
    before, guarded, observed, stage = read_clean(clean, norm, view, tokens, norms, gates, cut)
    move, _, edits = stage.edit(clean, view.edits, conditional=False, cut=cut)
    others = view.rules.numbers.shape[-1] + view.bounds.numbers.shape[-1]
    acted = torch.cat((edits, edits.new_zeros(edits.shape[0], others)), -1)
    nothing = torch.zeros_like(clean[:, 0])
    readings = Readings(before, before, guarded, nothing > 0.0, nothing, nothing, acted, observed)
    return Waiting(move, _Numbers.of(view.edits.numbers, tokens).tightness, readings)


def write_apart(x: Tensor, waiting: Waiting) -> tuple[Tensor, Readings]:
    """Add what waits to the activations x [T, d] of the second place, within the slot's bound of ‖x‖ there.

    Returns x' in x's dtype and the readings. A token that no row changes keeps its bits.
    """
    clean = x.to(torch.float32)
    norm = clean.norm(dim=-1, keepdim=True)
    result = (clean + _bounded(waiting.move, norm, waiting.tightness)).to(x.dtype)
    final = result.to(torch.float32)
    relative = (final - clean).norm(dim=-1) / norm[..., 0].clamp(min=1e-30)
    return result, waiting.readings._replace(edited=(final != clean).any(-1), relative_norm=relative)
