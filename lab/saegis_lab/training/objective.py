"""The objective: an autoencoder as it is trained, and the loss that its architecture minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saegis_lab.training.settings import SAETraining
from saegis_server.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Losses:
    """What one batch gave: the terms of the loss, and, detached, its FVU and mean number of active features.

    All are scalars of float32. Squared errors are means over the tokens, divided by the width, so a
    coefficient means the same at every width.
    """

    terms: Mapping[str, Tensor]
    fvu: Tensor
    l0: Tensor

    @property
    def total(self) -> Tensor:
        """The loss to minimise."""
        return torch.stack(tuple(self.terms.values())).sum()


class Objective(nn.Module, ABC):
    """W_enc [d, m], b_enc [m], W_dec [m, d] and b_dec [d], float32, on activations of mean norm √d.

    silent [m], int64: for how many tokens each feature has not fired.
    """

    silent: Tensor
    #: Whether the rows of W_dec keep length 1 in training.
    unit_rows = True

    def __init__(self, first: Tensor, settings: SAETraining, row_length: float = 1.0) -> None:
        """Start at random rows of W_dec of `row_length`, W_enc their transpose, b_dec the mean of `first`.

        first: a batch of scaled activations, float32 [n, d].
        """
        super().__init__()
        generator = torch.Generator().manual_seed(settings.seed)
        rows = torch.randn(settings.features, first.shape[1], generator=generator)
        rows = (row_length * rows / rows.norm(dim=1, keepdim=True)).to(first.device)
        self.settings = settings
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(settings.features, device=first.device))
        self.b_dec = nn.Parameter(first.mean(0))
        silent = torch.zeros(settings.features, dtype=torch.long, device=first.device)
        self.register_buffer("silent", silent)

    @abstractmethod
    def loss(self, x: Tensor, sparsity: float) -> Losses:
        """The loss of the scaled activations x, float32 [n, d]; takes note of which features fired.

        sparsity: the share of the sparsity penalty that counts, 0 to 1.
        """

    @abstractmethod
    def finished(self, scale: float) -> SparseAutoencoder:
        """The autoencoder of the model's own activations x / `scale`, on the CPU, its W_dec of unit rows."""

    @property
    def dead(self) -> Tensor:
        """Which features have not fired for so long that they count as dead, bool [m]."""
        return self.silent >= self.settings.dead_after

    @torch.no_grad()
    def note_fired(self, fired: Tensor, tokens: int) -> None:
        """Keep account of silence: `fired`, bool [m], on a batch of `tokens`."""
        self.silent.add_(tokens).masked_fill_(fired, 0)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take from the gradient of each unit row what would only change its length."""
        if self.unit_rows and self.W_dec.grad is not None:
            along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True)
            self.W_dec.grad.sub_(along * self.W_dec)

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the rows of W_dec back to unit length, where the architecture keeps it."""
        if self.unit_rows:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))


def variance(x: Tensor) -> Tensor:
    """The sum over the batch x [n, d] of ‖x − mean x‖²; never 0."""
    return (x - x.mean(0)).square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def revival(objective: Objective, x: Tensor, error: Tensor) -> Tensor:
    """AuxK: how badly the dead features reconstruct the error that the living ones leave, 0 to about 1.

    Of each token's d/2 dead features of the largest pre-activation, as ‖e − ê‖² / ‖e‖² (Gao et al. 2024,
    arXiv 2406.04093, appendix A.2, normalised as in their code). x and error: [n, d].
    """
    dead = objective.dead.nonzero().squeeze(1)
    if len(dead) == 0:
        return error.new_zeros(())
    error = error.detach()
    p = torch.relu((x - objective.b_dec.detach()) @ objective.W_enc[:, dead] + objective.b_enc[dead])
    kept = p
    if len(dead) > (most := max(1, x.shape[1] // 2)):
        top = torch.topk(p, most, dim=1, sorted=False)
        kept = torch.zeros_like(p).scatter(1, top.indices, top.values)
    missed = (error - (kept @ objective.W_dec[dead]).float()).square().sum()
    return missed / error.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
