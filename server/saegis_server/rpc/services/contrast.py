"""Contrast: which features fire in one set of texts and not in another."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Side:
    """What each feature does over a set of texts, float32 [m].

    mean: the mean over texts of the largest activation in each; rate: the share of texts in which it fires.
    """

    mean: Tensor
    rate: Tensor


@dataclass(frozen=True, slots=True)
class Contrasted:
    """One feature: its score, and (mean, rate) on either side."""

    index: int
    score: float
    positive: tuple[float, float]
    negative: tuple[float, float]


def side(largest: Tensor) -> Side:
    """One side, from the largest activation of each feature in each text [texts, m]."""
    return Side(largest.mean(0), (largest > 0.0).to(torch.float32).mean(0))


def contrast(positive: Side, negative: Side, limit: int) -> list[Contrasted]:
    """The features that tell the sides apart, best first, at most `limit`.

    The score is the firing rate in the positive less that in the negative texts. Ties are ordered by the
    difference of the means, then by index. A feature that does not lean to the positive side is left out.
    """
    score = positive.rate - negative.rate
    lead = positive.mean - negative.mean
    leaning = ((score > 0.0) | ((score == 0.0) & (lead > 0.0))).nonzero().squeeze(-1)
    ranked = sorted(
        zip(leaning.tolist(), score[leaning].tolist(), lead[leaning].tolist(), strict=True),
        key=lambda found: (-found[1], -found[2], found[0]),
    )
    return [
        Contrasted(
            index,
            value,
            (float(positive.mean[index]), float(positive.rate[index])),
            (float(negative.mean[index]), float(negative.rate[index])),
        )
        for index, value, _ in ranked[:limit]
    ]
