"""The objectives: an autoencoder as it is trained, and the loss that each architecture minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saegis_lab.training.settings import SAETraining
from saegis_lab.training.sparse import Places, decoded, encoded
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder


@dataclass(frozen=True)
class Losses:
    """The losses of one batch: the terms, and, detached, its FVU and mean number of active features.

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
        """The loss of the scaled activations x, float32 [n, d]; records which features fired.

        sparsity: the share of the sparsity penalty that counts, 0 to 1.
        """

    @abstractmethod
    def finished(self, scale: float) -> SparseAutoencoder:
        """The autoencoder of the model's own activations x / `scale`, on the CPU, its W_dec of unit rows."""

    def _jumprelu(self, threshold: Tensor, scale: float) -> SparseAutoencoder:
        """`finished` as a JumpReLU of these thresholds, [m], in the model's own units."""
        return SparseAutoencoder(
            Architecture.JUMPRELU,
            W_enc=self.W_enc.detach().cpu().clone(),
            W_dec=self.W_dec.detach().cpu().clone(),
            b_dec=self.b_dec.detach().cpu() / scale,
            b_enc=self.b_enc.detach().cpu() / scale,
            threshold=threshold,
        )

    @property
    def dead(self) -> Tensor:
        """Which features have not fired for so long that they count as dead, bool [m]."""
        return self.silent >= self.settings.dead_after

    @torch.no_grad()
    def note_fired(self, fired: Tensor, tokens: int) -> None:
        """Update `silent` after a batch of `tokens` tokens. fired: the features that fired, bool [m]."""
        self.silent.add_(tokens).masked_fill_(fired, 0)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove from the gradient of each unit row the part that only changes its length."""
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

    It is ‖e − ê‖² / ‖e‖², with each token's d/2 dead features of the largest pre-activation (Gao et al. 2024,
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


#: The weakest active activation is averaged over this share of the steps, and at most over so many.
_AVERAGED_SHARE, _AVERAGED_STEPS = 0.05, 100.0
#: The search for the weakest active activation starts at this share of the last one.
_HINT, _HINT_TOKENS = 0.85, 64


class BatchTopK(Objective):
    """BatchTopK (Bussmann et al. 2024, arXiv 2412.06410), kept as a JumpReLU.

    Its threshold is the running mean of the weakest activation that stayed on. With groups the loss is the
    mean over the prefixes of groups of the error of a reconstruction from that prefix alone, all with the one
    choice of what stays on (Matryoshka: Bussmann et al. 2025, arXiv 2503.17547): the first groups learn what
    is general, the later ones what is particular.
    """

    threshold: Tensor
    hint: Tensor

    def __init__(self, first: Tensor, settings: SAETraining) -> None:
        """See Objective."""
        super().__init__(first, settings)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.double, device=first.device))
        # Only a guess that saves time and memory: the choice does not depend on it.
        self.register_buffer("hint", self._first_hint(first), persistent=False)

    @torch.no_grad()
    def _first_hint(self, first: Tensor) -> Tensor:
        """About where the weakest active activation will be, from the first tokens of the first batch."""
        p = ((first[:_HINT_TOKENS] - self.b_dec) @ self.W_enc).relu()
        return _HINT * p.flatten().topk(self._count(len(p))).values[-1]

    def _count(self, tokens: int) -> int:
        """k·n: how many activations stay on."""
        if self.settings.k is None:
            raise ValueError("k is not set")
        return max(1, int(self.settings.k * tokens))

    def loss(self, x: Tensor, sparsity: float) -> Losses:
        """The mean squared error over all prefixes, and the revival of dead features; see Objective."""
        centred = x - self.b_dec
        places, chosen = self._strongest(centred)
        values = encoded(chosen, centred, self.W_enc, self.b_enc, places)
        error, errors = x - self.b_dec, []
        for part in self._parts(values, places):
            error = error - part
            errors.append(error.square().sum())
        terms = {"error": torch.stack(errors).mean() / x.numel()}
        if self.settings.auxiliary > 0.0:
            terms["auxiliary"] = self.settings.auxiliary * revival(self, x, error)
        fired = torch.zeros_like(self.silent, dtype=torch.bool).index_fill_(0, places.columns, True)
        self.note_fired(fired, len(x))
        return Losses(terms, errors[-1].detach() / variance(x), chosen.new_tensor(len(chosen) / len(x)))

    def _parts(self, values: Tensor, places: Places) -> Iterator[Tensor]:
        """What each group adds to the reconstruction, [n, d]."""
        if not self.settings.groups:
            yield decoded(values, places, self.W_dec)
            return
        start = 0
        for size in self.settings.groups:
            inside = (places.columns >= start) & (places.columns < start + size)
            yield decoded(values[inside], places.only(inside), self.W_dec)
            start += size

    @torch.no_grad()
    def _strongest(self, centred: Tensor) -> tuple[Places, Tensor]:
        """The places of the k·n largest positive pre-activations of the batch, and their values, float32.

        Ties with the weakest of them stay on too. Moves the running threshold.
        """
        p = torch.addmm(self.b_enc, centred, self.W_enc)
        count = self._count(len(p))
        places = Places.where(p > self.hint)
        if len(places.rows) < count:
            places = Places.where(p > 0.0)
        values = p[places.rows, places.columns].float()
        if len(values) > count:
            weakest = values.kthvalue(len(values) - count + 1).values
            kept = values >= weakest
            places, values = places.only(kept), values[kept]
        if len(values) > 0:
            weakest = values.min()
            self.hint.copy_(_HINT * weakest)
            averaged = min(_AVERAGED_STEPS, max(1.0, _AVERAGED_SHARE * self.settings.steps))
            self.threshold.lerp_(weakest.double(), 1.0 / averaged if self.threshold > 0.0 else 1.0)
        return places, values

    @torch.no_grad()
    def finished(self, scale: float) -> SparseAutoencoder:
        """See Objective; one threshold for all features."""
        return self._jumprelu(torch.full((len(self.b_enc),), self.threshold.item() / scale), scale)


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
    the square token by token, which also punishes tokens that need more features than others, and ends below
    k.) Where the settings give an `l0_coefficient` λ it is λ·L0. The thresholds, float32 [m], are trained
    themselves and not their logarithms, as in SAELens, and start where the first batch has the target L0, or
    under a plain penalty half the width.
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
        """The penalty, a scalar, from the tokens' L0 [n]."""
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
        return self._jumprelu(self.threshold.detach().cpu() / scale, scale)
