"""JumpReLU: a threshold for each feature, learnt by a straight-through estimator, under a penalty on L0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saegis_lab.training.objective import Losses, Objective, revival, variance
from saegis_lab.training.settings import SAETraining
from saegis_lab.training.sparse import Places, decoded, encoded
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder


def _near(p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel of height 1 around the threshold, of the dtype of p."""
    return ((p - threshold).abs() < bandwidth / 2).to(p.dtype)


class _Jump(torch.autograd.Function):
    """f = p·[p > θ]; ∂f/∂θ is estimated by −(θ/ε)·K((p − θ)/ε)."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return p * (p > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        p, threshold = ctx.saved_tensors
        of_threshold = -(threshold / ctx.bandwidth) * _near(p, threshold, ctx.bandwidth) * gradients[0]
        return (p > threshold) * gradients[0], of_threshold, None


class _Step(torch.autograd.Function):
    """[p > θ]; ∂/∂θ is estimated by −(1/ε)·K((p − θ)/ε), and p gets no gradient."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(p, threshold)
        ctx.bandwidth = bandwidth
        return (p > threshold).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        p, threshold = ctx.saved_tensors
        return None, -_near(p, threshold, ctx.bandwidth) / ctx.bandwidth * gradients[0], None


class JumpReLU(Objective):
    """JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): squared error + a penalty on L0.

    The penalty is (L0/k − 1)², L0 the batch's mean, which steers towards k. (SAELens' quadratic penalty takes
    the square token by token, which also punishes tokens that need more features than others, and ends
    below k.) Where the settings give an `l0_coefficient` λ it is λ·L0. The thresholds, float32 [m], are
    trained themselves and not their logarithms, as in SAELens, and begin where the first batch has the L0
    that is aimed at; under a plain penalty where it is half the width.
    """

    def __init__(self, first: Tensor, settings: SAETraining) -> None:
        """See Objective."""
        super().__init__(first, settings)
        self.bandwidth = settings.bandwidth * first.shape[1] ** 0.5
        at_first = settings.k or min(first.shape[1], settings.features) / 2
        with torch.no_grad():
            p = ((first - self.b_dec) @ self.W_enc).flatten()
            weakest = p.kthvalue(max(1, p.numel() - int(at_first * len(first)))).values.clamp_min(0.0)
        self.threshold = nn.Parameter(weakest.expand(settings.features).clone())

    def loss(self, x: Tensor, sparsity: float) -> Losses:
        """The mean squared error, the penalty on L0, and the revival of dead features; see Objective."""
        centred = x - self.b_dec
        places, p = self._considered(centred)
        p = encoded(p, centred, self.W_enc, self.b_enc, places)
        threshold = self.threshold.index_select(0, places.columns)
        error = x - self.b_dec - decoded(_Jump.apply(p, threshold, self.bandwidth), places, self.W_dec)  # type: ignore[no-untyped-call]
        on: Tensor = _Step.apply(p, threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        l0 = on.new_zeros(len(x)).index_add(0, places.rows, on)
        terms = {"error": error.square().sum() / x.numel(), "sparsity": sparsity * self._penalty(l0)}
        if self.settings.auxiliary > 0.0:
            terms["auxiliary"] = self.settings.auxiliary * revival(self, x, error)
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        self.note_fired(fired.index_fill(0, places.columns[on.detach() > 0], True), len(x))
        return Losses(terms, error.detach().square().sum() / variance(x), l0.detach().mean())

    def _penalty(self, l0: Tensor) -> Tensor:
        """Of the tokens' L0 [n], one number."""
        if self.settings.l0_coefficient is not None:
            return self.settings.l0_coefficient * l0.mean()
        if self.settings.k is None:
            raise ValueError("k is not set")
        return (l0.mean() / self.settings.k - 1.0).square()

    @torch.no_grad()
    def _considered(self, centred: Tensor) -> tuple[Places, Tensor]:
        """The pre-activations above their threshold, or so little below it that the kernel counts them."""
        p = torch.addmm(self.b_enc, centred, self.W_enc)
        places = Places.where(p > self.threshold - self.bandwidth / 2)
        return places, p[places.rows, places.columns].float()

    @torch.no_grad()
    def normalise(self) -> None:
        """Rows of unit length, and thresholds of at least 0: below, a feature would be active at p < 0."""
        super().normalise()
        self.threshold.clamp_(min=0.0)

    @torch.no_grad()
    def finished(self, scale: float) -> SparseAutoencoder:
        """See Objective."""
        return SparseAutoencoder(
            Architecture.JUMPRELU,
            W_enc=self.W_enc.detach().cpu().clone(),
            W_dec=self.W_dec.detach().cpu().clone(),
            b_dec=self.b_dec.detach().cpu() / scale,
            b_enc=self.b_enc.detach().cpu() / scale,
            threshold=self.threshold.detach().cpu() / scale,
        )
