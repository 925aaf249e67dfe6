"""Neighbours: the features of an SAE whose decoder rows are most alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from saegis_server.sae.autoencoder import SparseAutoencoder

#: Decoders of more numbers are not searched, and so many numbers of one are looked at a time.
MOST_NUMBERS, AT_ONCE = 2**28, 2**22
Paced = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A feature, and the cosine of its decoder row with another one's."""

    feature: int
    cosine: float


def is_searchable(sae: SparseAutoencoder) -> bool:
    """Whether an SAE's decoder is small enough to be searched."""
    return sae.W_dec.numel() <= MOST_NUMBERS


def neighbours(sae: SparseAutoencoder, feature: int, count: int, paced: Paced = iter) -> list[Neighbour]:
    """The `count` features nearest to one, nearest first, of equal ones the first. Rows of 0 are near none.

    paced: goes through the parts of the work. Raises SAEFileError where a mapped file has changed.
    """
    if sae.mapped is not None:
        sae.mapped.require_unchanged()
    own = sae.W_dec[feature].to(torch.float32)
    rows = max(1, AT_ONCE // len(own))
    cosines = torch.empty(sae.features)
    for begin in paced(range(0, sae.features, rows)):
        part = sae.W_dec[begin : begin + rows].to(torch.float32)
        lengths = part.norm(dim=1) * own.norm()
        cosines[begin : begin + rows] = torch.where(lengths > 0.0, part @ own / lengths, -torch.inf)
    cosines[feature] = -torch.inf
    nearest = cosines.sort(descending=True, stable=True)
    found = zip(nearest.indices[:count].tolist(), nearest.values[:count].tolist(), strict=True)
    return [Neighbour(other, cosine) for other, cosine in found if cosine > -torch.inf]
