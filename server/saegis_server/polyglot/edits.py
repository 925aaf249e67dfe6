"""The two edits that the reference model is checked under, in their plain form: a clamp and a ban of given
strength."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saegis_server.polyglot.activations import Edit
from saegis_server.polyglot.sae_file import TrainedSAE


def _probe(sae: TrainedSAE, rows: Tensor, x: Tensor) -> Tensor:
    p = (x.float() - sae.b_dec) @ sae.W_enc[:, rows] + sae.b_enc[rows]
    return torch.relu(p) * (p > sae.threshold[rows])


def clamp(sae: TrainedSAE, feature: int, value: float) -> Edit:
    """x' = x + (value − f) W_dec[feature] on every token; `value` in feature units."""
    rows = torch.tensor([feature])

    def edit(x: Tensor) -> Tensor:
        return (x.float() + (value - _probe(sae, rows, x)) @ sae.W_dec[rows]).to(x.dtype)

    return edit


def ban(sae: TrainedSAE, features: Sequence[int], strength: float) -> Edit:
    """x' = x − (1 + strength) Σ f_i W_dec[i]: every active feature i is pushed to −strength times what it
    was."""
    rows = torch.tensor(list(features), dtype=torch.long)

    def edit(x: Tensor) -> Tensor:
        return (x.float() - (1 + strength) * _probe(sae, rows, x) @ sae.W_dec[rows]).to(x.dtype)

    return edit
