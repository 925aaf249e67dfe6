"""Coverage: how well features found in some languages fire in the others, one by one and as a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True, slots=True)
class FeatureCoverage:
    """One feature by language.

    recall: the share of wanted tokens on which it fires; precision: of the tokens on which it fires, the
    share that is wanted, None where it never fires. worst: the language of the least recall, among those in
    which it was not found if there are any.
    """

    feature: int
    recall: dict[str, float]
    precision: dict[str, float | None]
    worst: str


@dataclass(frozen=True, slots=True)
class LanguageCoverage:
    """The set of features in one language, by the tokens and texts on which at least one of them fires.

    tokens: the share of the wanted tokens; texts: the share of the texts with wanted tokens in which one
    fires on such a token; other_tokens: the share of the tokens that are not wanted, None without any.
    """

    wanted_tokens: int
    wanted_texts: int
    tokens: float
    texts: float
    other_tokens: float | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """The coverage of `wanted`, in words, by features that were found in the languages `found_in`."""

    wanted: str
    found_in: tuple[str, ...]
    features: tuple[FeatureCoverage, ...]
    languages: dict[str, LanguageCoverage]


class CoverageCounter:
    """Counts firings, batch by batch. `is_wanted` says which tokens the features are for."""

    def __init__(
        self,
        features: Sequence[int],
        is_wanted: Callable[[TokenTruth], bool],
        device: torch.device | str = "cpu",
    ) -> None:
        self._features = tuple(features)
        self._is_wanted = is_wanted
        self._by_feature = FeatureStatistics(len(self._features), device)
        self._any = FeatureStatistics(1, device)
        # The texts with wanted tokens, by language, and those of them on which a feature fires.
        self._texts: dict[str, tuple[set[int], set[int]]] = {}

    def add(self, texts: Tensor, truths: Sequence[TokenTruth], activations: Tensor) -> None:
        """Add a batch: the number of each token's text [n], the truth of each token, and the activations of
        the features, in their order, float32 [n, k]."""
        self._by_feature.add(activations, truths)
        fires = activations.amax(1, keepdim=True) > 0.0
        self._any.add(fires.float(), truths)
        for text, truth, fired in zip(texts.tolist(), truths, fires[:, 0].tolist(), strict=True):
            if self._is_wanted(truth):
                seen, covered = self._texts.setdefault(truth.language, (set(), set()))
                seen.add(text)
                if fired:
                    covered.add(text)

    def result(self, words: str, found_in: Sequence[str] = ()) -> Coverage:
        """The coverage, in every language that has wanted tokens. words: what is wanted, in words.

        Raises ValueError if no token is wanted, or none in a language of `found_in`.
        """
        languages = sorted(self._texts)
        if not languages:
            raise ValueError(f"no token of the texts is wanted ({words}); give texts that have some")
        if missing := [code for code in found_in if code not in languages]:
            raise ValueError(
                f"language {missing[0]!r}: no token is wanted ({words}); there are some in "
                + ", ".join(languages)
            )
        sides = {code: self._sides(code) for code in languages}
        return Coverage(
            words,
            tuple(found_in),
            tuple(
                self._feature(column, feature, sides, found_in)
                for column, feature in enumerate(self._features)
            ),
            {code: self._language(code, *side) for code, side in sides.items()},
        )

    def _sides(self, language: str) -> tuple[list[int], list[int]]:
        """The numbers of the groups of a language whose tokens are wanted, and of the others."""
        on: list[int] = []
        off: list[int] = []
        for number, group in enumerate(self._by_feature.groups):
            if group.language == language:
                (on if self._is_wanted(group) else off).append(number)
        return on, off

    def _feature(
        self,
        column: int,
        feature: int,
        sides: dict[str, tuple[list[int], list[int]]],
        found_in: Sequence[str],
    ) -> FeatureCoverage:
        fired = self._by_feature.fired[:, column]
        recall: dict[str, float] = {}
        precision: dict[str, float | None] = {}
        for code, (on, off) in sides.items():
            hits, others = int(fired[on].sum()), int(fired[off].sum())
            recall[code] = hits / int(self._by_feature.sizes[on].sum())
            precision[code] = hits / (hits + others) if hits + others else None
        elsewhere = [code for code in recall if code not in found_in] or list(recall)
        return FeatureCoverage(feature, recall, precision, min(elsewhere, key=lambda code: recall[code]))

    def _language(self, language: str, on: list[int], off: list[int]) -> LanguageCoverage:
        fired, sizes = self._any.fired[:, 0], self._any.sizes
        wanted_tokens, other_tokens = int(sizes[on].sum()), int(sizes[off].sum())
        seen, covered = self._texts[language]
        return LanguageCoverage(
            wanted_tokens=wanted_tokens,
            wanted_texts=len(seen),
            tokens=int(fired[on].sum()) / wanted_tokens,
            texts=len(covered) / len(seen),
            other_tokens=int(fired[off].sum()) / other_tokens if other_tokens else None,
        )


def with_features(sae: SparseAutoencoder, features: Sequence[int]) -> SparseAutoencoder:
    """The SAE with these features alone, in this order: k features encode at the cost of k.

    Raises IndexError for a feature that does not exist.
    """
    return sae.only(features)
