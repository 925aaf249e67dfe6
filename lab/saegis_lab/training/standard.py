"""The standard autoencoder: a ReLU, under a penalty on the features' sum."""

from __future__ import annotations

import torch
from torch import Tensor

from saegis_lab.training.objective import Losses, Objective, variance
from saegis_lab.training.settings import SAETraining
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder

#: How long the rows of W_dec are at first: long ones would reconstruct far too much.
_ROW_LENGTH = 0.1


class Standard(Objective):
    """A ReLU with the loss of Scaling Monosemanticity (Anthropic 2024): ‖x − x̂‖² + λ Σ f_i·‖W_dec,i‖.

    The rows of W_dec take any length in training; in the end it is folded into W_enc and b_enc. Dead features
    are not revived: their pre-activations are negative, so AuxK would give them no gradient.
    """

    unit_rows = False

    def __init__(self, first: Tensor, settings: SAETraining) -> None:
        """See Objective."""
        super().__init__(first, settings, _ROW_LENGTH)

    def loss(self, x: Tensor, sparsity: float) -> Losses:
        """The mean squared error and the penalty, both over the width; see Objective."""
        if self.settings.l1_coefficient is None:
            raise ValueError("l1_coefficient is not set")
        f = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        error = x - self.b_dec - (f @ self.W_dec).float()
        total = (f.float().sum(0) * self.W_dec.norm(dim=1)).sum()
        terms = {
            "error": error.square().sum() / x.numel(),
            "sparsity": sparsity * self.settings.l1_coefficient * total / x.numel(),
        }
        on = (f.detach() > 0).sum(0)
        self.note_fired(on > 0, len(x))
        return Losses(terms, error.detach().square().sum() / variance(x), on.sum() / len(x))

    @torch.no_grad()
    def finished(self, scale: float) -> SparseAutoencoder:
        """See Objective; the features are those of training times the length of their rows."""
        length = self.W_dec.norm(dim=1).clamp_min(1e-12)
        return SparseAutoencoder(
            Architecture.STANDARD,
            W_enc=(self.W_enc * length).cpu(),
            W_dec=(self.W_dec / length[:, None]).cpu(),
            b_dec=self.b_dec.detach().cpu() / scale,
            b_enc=(self.b_enc * length).cpu() / scale,
        )
