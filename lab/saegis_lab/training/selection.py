"""Selection: features for a ban, from labelled text in a few languages, in each of which they must hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth


@dataclass(frozen=True, slots=True)
class Contrast:
    """All m features in one language, on the wanted tokens and on the others.

    rate: the share of tokens on which a feature fires; mean: the mean activation over tokens, in feature
    units. All float64 [m].
    """

    rate_on: Tensor
    rate_off: Tensor
    mean_on: Tensor
    mean_off: Tensor
    tokens_on: int
    tokens_off: int

    @property
    def precision(self) -> Tensor:
        """Of the activation that a feature spends in the language, the share on wanted tokens, float64 [m];
        0 where it never fires."""
        on, off = self.mean_on * self.tokens_on, self.mean_off * self.tokens_off
        return on / (on + off).clamp_min(torch.finfo(torch.float64).tiny)


def contrast(
    statistics: FeatureStatistics, is_wanted: Callable[[TokenTruth], bool], languages: Sequence[str]
) -> dict[str, Contrast]:
    """The contrast of the tokens for which `is_wanted` holds with all others, for each of `languages`.

    Raises ValueError, naming the language, where there are no wanted tokens or no others.
    """
    return {language: _contrast(statistics, is_wanted, language) for language in languages}


def _contrast(
    statistics: FeatureStatistics, is_wanted: Callable[[TokenTruth], bool], language: str
) -> Contrast:
    sides: tuple[list[int], list[int]] = [], []
    for number, group in enumerate(statistics.groups):
        if group.language == language:
            sides[is_wanted(group)].append(number)
    off, on = sides
    tokens_off, tokens_on = (int(statistics.sizes[side].sum()) for side in sides)
    if not tokens_on or not tokens_off:
        raise ValueError(
            f"language {language!r}: {tokens_on} tokens are wanted and {tokens_off} are not; give texts of "
            "both kinds in every language to choose from"
        )
    return Contrast(
        rate_on=statistics.fired[on].sum(0) / float(tokens_on),
        rate_off=statistics.fired[off].sum(0) / float(tokens_off),
        mean_on=statistics.mass[on].sum(0) / tokens_on,
        mean_off=statistics.mass[off].sum(0) / tokens_off,
        tokens_on=tokens_on,
        tokens_off=tokens_off,
    )


@dataclass(frozen=True, slots=True)
class LanguageFigures:
    """One feature in one language, as `Contrast` has it."""

    rate_on: float
    rate_off: float
    mean_on: float
    mean_off: float
    precision: float


@dataclass(frozen=True, slots=True)
class RankedFeature:
    """A chosen feature with its score and its figures in each language that it was chosen from."""

    feature: int
    score: float
    by_language: Mapping[str, LanguageFigures]


def score(contrasts: Mapping[str, Contrast]) -> Tensor:
    """What features are ranked by, float64 [m]: the mean activation on wanted tokens in the language where it
    is smallest. A feature of one language alone has next to nothing in another."""
    return torch.stack([contrast.mean_on for contrast in contrasts.values()]).amin(0)


def choose_features(contrasts: Mapping[str, Contrast], precision: float, limit: int) -> list[RankedFeature]:
    """The features that hold in every language of `contrasts`, highest `score` first, at most `limit`.

    A feature holds where it fires on wanted tokens and at least `precision` of its activation lies on them.
    Asking this in several languages separates features of a meaning from those of one language: a feature of
    English words has no share in Chinese text. Features of equal score stand in their order. Raises
    ValueError if there is no language, or `precision` is not from 0 to 1.
    """
    if not contrasts:
        raise ValueError("contrasts: name at least one language to choose from")
    if not 0.0 <= precision <= 1.0:
        raise ValueError(f"precision is {precision}, not a share from 0 to 1")
    worst = torch.stack([contrast.precision for contrast in contrasts.values()]).amin(0)
    scores = torch.where(worst >= precision, score(contrasts), 0.0)
    values, features = scores.sort(descending=True, stable=True)
    count = min(limit, int((values > 0.0).sum()))
    return [
        RankedFeature(
            feature, value, {code: _figures(contrast, feature) for code, contrast in contrasts.items()}
        )
        for feature, value in zip(features[:count].tolist(), values[:count].tolist(), strict=True)
    ]


def _figures(contrast: Contrast, feature: int) -> LanguageFigures:
    return LanguageFigures(
        rate_on=float(contrast.rate_on[feature]),
        rate_off=float(contrast.rate_off[feature]),
        mean_on=float(contrast.mean_on[feature]),
        mean_off=float(contrast.mean_off[feature]),
        precision=float(contrast.precision[feature]),
    )
