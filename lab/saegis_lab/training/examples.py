"""Examples gathered from texts: where each feature fires most strongly, and how strongly it fires at all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from saegis_lab.training.activations import FeatureBatch
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.examples import Examples

#: How many pieces of text are kept for a feature, and how many tokens of each: before the strongest one,
#: itself, and behind it.
PIECES, BEFORE, BEHIND = 5, 15, 8
#: A histogram has so many bins, a power of two.
BINS = 32
#: The least width of a bin is two to this.
_LEAST_EXPONENT = -126


class Histograms:
    """Counts of activations by strength, for each of m features.

    Activations need not be known beforehand: where a greater one comes, bins are joined in pairs until it
    fits. So a bin's width is a power of two, and every count is exact. counts: int64 [m, BINS].
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(features, BINS, dtype=torch.int64, device=device)
        self._exponents = torch.full((features,), _LEAST_EXPONENT, dtype=torch.int32, device=device)

    @property
    def bin_width(self) -> Tensor:
        """The width of each feature's bins, float32 [m]; 0 where it never fired."""
        width = torch.ldexp(torch.ones(len(self._exponents), device=self.counts.device), self._exponents)
        return torch.where(self.counts.sum(1) > 0, width, 0.0)

    def add(self, activations: Tensor) -> None:
        """Count a batch of activations, float32 [n, m], n above 0."""
        self._widen(activations.amax(0))
        rows, features = (activations > 0.0).nonzero(as_tuple=True)
        # Exact, since it only changes the exponent.
        bins = torch.ldexp(activations[rows, features], -self._exponents[features]).long()
        places = features * BINS + bins
        self.counts += torch.bincount(places, minlength=self.counts.numel()).view_as(self.counts)

    def _widen(self, largest: Tensor) -> None:
        """Join bins in pairs until `largest` [m] lies in one, below the upper end of the last."""
        # largest is at least 2^(x − 1) and below 2^x.
        wanted = torch.frexp(largest).exponent - (BINS.bit_length() - 1)
        steps = torch.where(largest > 0.0, wanted - self._exponents, 0).clamp(min=0)
        self._exponents += steps
        for _ in range(BINS.bit_length() - 1):
            joins = steps > 0
            halved = self.counts[joins].view(-1, BINS // 2, 2).sum(2)
            self.counts[joins] = torch.cat([halved, torch.zeros_like(halved)], 1)
            steps = steps - 1


class StrongestTokens:
    """The strongest token of each feature in each of the texts in which it is strongest, for m features.

    values: float32 [PIECES, m], strongest first, 0 where there is none; texts, places: int64 [PIECES, m], the
    number of the text and where in it the token stands, −1 where there is none. Of equal ones the first met
    counts.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.zeros(PIECES, features, device=device)
        self.texts = torch.full((PIECES, features), -1, dtype=torch.int64, device=device)
        self.places = self.texts.clone()

    def add(self, batch: FeatureBatch) -> None:
        """Take the tokens of a batch. A text's tokens come in the order of their places, in any batches."""
        texts, members = torch.unique(batch.texts, return_inverse=True)
        values = self.values.new_zeros(len(texts), self.values.shape[1])
        places = self.texts.new_zeros(values.shape)
        for row in range(len(texts)):
            tokens = (members == row).nonzero().squeeze(-1)
            values[row], strongest = batch.activations[tokens].max(0)
            places[row] = batch.places[tokens][strongest]
        numbers = texts[:, None].expand_as(places)
        same = self.texts[:, None] == numbers[None]
        outdone = (same & (values > self.values[:, None])).any(1)
        known = (same & (values <= self.values[:, None])).any(0)
        together = torch.cat([self.values.masked_fill(outdone, 0.0), values.masked_fill(known, 0.0)])
        order = together.sort(dim=0, descending=True, stable=True).indices[:PIECES]
        self.values = together.gather(0, order)
        none = self.values <= 0.0
        self.texts = torch.cat([self.texts, numbers]).gather(0, order).masked_fill(none, -1)
        self.places = torch.cat([self.places, places]).gather(0, order).masked_fill(none, -1)


def gather_examples(
    strongest: StrongestTokens,
    histograms: Histograms,
    batches: Iterable[FeatureBatch],
    sae: SparseAutoencoder,
    read: int,
) -> Examples:
    """The examples of an SAE: the pieces of text around its strongest tokens, read a second time.

    batches: the tokens of all texts in which a strongest one stands. read: how many tokens were counted.
    Tokens that are not read, such as the first of a text, are in no piece.
    """
    slots, features = (strongest.texts >= 0).nonzero(as_tuple=True)
    texts, places = strongest.texts[slots, features], strongest.places[slots, features]
    reach = torch.arange(-BEFORE, BEHIND + 1, device=places.device)
    shape = strongest.texts.shape[1], PIECES, len(reach)
    tokens = torch.full(shape, -1, dtype=torch.int32, device=places.device)
    activations = torch.zeros(shape, device=places.device)
    for batch in batches:
        numbers, members = torch.unique(batch.texts, return_inverse=True)
        table = texts.new_full((len(numbers), int(batch.places.max()) + 1), -1)
        table[members, batch.places] = torch.arange(len(members), device=table.device)
        here = torch.isin(texts, numbers).nonzero().squeeze(-1)
        lines = torch.searchsorted(numbers, texts[here])
        at = places[here, None] + reach
        inside = (at >= 0) & (at < table.shape[1])
        rows = torch.where(inside, table[lines[:, None], at.clamp(0, table.shape[1] - 1)], -1)
        which, offset = (rows >= 0).nonzero(as_tuple=True)
        row, feature, slot = rows[which, offset], features[here[which]], slots[here[which]]
        tokens[feature, slot, offset] = batch.token_ids[row].int()
        activations[feature, slot, offset] = batch.activations[row, feature]
    return Examples(
        tokens.cpu(),
        activations.cpu(),
        histograms.counts.cpu(),
        histograms.bin_width.cpu(),
        read,
        sae.digest,
    )
