"""Sparse activations: the few features active at each token, encoded and decoded without the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True)
class Places:
    """Places in a matrix of [tokens, features], row by row: rows and columns, int64 [count]."""

    rows: Tensor
    columns: Tensor
    tokens: int

    @classmethod
    def where(cls, mask: Tensor) -> Places:
        """The places at which `mask`, bool [tokens, features], is set."""
        rows, columns = mask.nonzero().unbind(1)
        return cls(rows, columns, len(mask))

    def only(self, kept: Tensor) -> Places:
        """The places that `kept`, bool [count], selects."""
        return Places(self.rows[kept], self.columns[kept], self.tokens)

    @property
    def offsets(self) -> Tensor:
        """Where each row begins, int64 [tokens]."""
        return _offsets(self.rows, self.tokens)


def _offsets(ordered: Tensor, count: int) -> Tensor:
    return torch.searchsorted(ordered, torch.arange(count, device=ordered.device))


def decoded(values: Tensor, places: Places, W_dec: Tensor) -> Tensor:
    """f·W_dec, [tokens, d], where f is `values` [count] at `places` and 0 elsewhere."""
    rows: Tensor = embedding_bag(
        places.columns.contiguous(), W_dec, places.offsets, mode="sum", per_sample_weights=values
    )
    return rows


class _Encoded(torch.autograd.Function):
    """p at some places, with a backward pass that never forms the gradient of the whole p."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, places: Places) -> Tensor:
        ctx.save_for_backward(x, W_enc)
        ctx.places = places
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, W_enc = ctx.saved_tensors
        places, (gradient,) = ctx.places, gradients
        features = W_enc.shape[1]
        order = places.columns.argsort(stable=True)
        columns = places.columns[order]
        # By column: ∂W_encᵀ[c] = Σ over the places (r, c) of ∂p·x[r].
        of_W_enc = embedding_bag(
            places.rows[order],
            x,
            _offsets(columns, features),
            mode="sum",
            per_sample_weights=gradient[order],
        ).T
        of_b_enc = torch.zeros(features, dtype=gradient.dtype, device=gradient.device)
        of_b_enc.index_add_(0, columns, gradient[order])
        of_x = decoded(gradient, places, W_enc.T.contiguous()) if ctx.needs_input_grad[1] else None
        return None, of_x, of_W_enc, of_b_enc, None


def encoded(values: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, places: Places) -> Tensor:
    """`values` [count], which are p = x·W_enc + b_enc at `places`, with the gradient of p.

    x [n, d], W_enc [d, m], b_enc [m], all float32.
    """
    result: Tensor = _Encoded.apply(values, x, W_enc, b_enc, places)  # type: ignore[no-untyped-call]
    return result
