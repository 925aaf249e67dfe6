"""BatchTopK: the k·n strongest activations of a batch stay on, in nested groups of features if wanted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from saegis_lab.training.objective import Losses, Objective, revival, variance
from saegis_lab.training.settings import SAETraining
from saegis_lab.training.sparse import Places, decoded, encoded
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder

#: Over what share of the steps, and over how many at most, the weakest active activation is averaged.
_AVERAGED_SHARE, _AVERAGED_STEPS = 0.05, 100.0
#: Where the weakest active activation is looked for, as a share of the last one.
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
        """Where the k·n largest positive pre-activations of the batch are, and their values, float32.

        Whatever equals the weakest of them stays on too. Moves the running threshold.
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
        threshold = torch.full((len(self.b_enc),), self.threshold.item() / scale)
        return SparseAutoencoder(
            Architecture.JUMPRELU,
            W_enc=self.W_enc.detach().cpu().clone(),
            W_dec=self.W_dec.detach().cpu().clone(),
            b_dec=self.b_dec.detach().cpu() / scale,
            b_enc=self.b_enc.detach().cpu() / scale,
            threshold=threshold,
        )
