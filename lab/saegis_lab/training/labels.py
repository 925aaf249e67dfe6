"""Labels from statistics: for every feature the concept or the vocabulary entry that its firing fits best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saegis_lab.training.statistics import FeatureStatistics, VocabularyCounts
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.labels import FeatureLabel, Labels

NEVER_FIRES = "never fires"
#: A share of fewer tokens than this is not stated.
LEAST_TOKENS = 20
#: A subject or a language is the feature's if it holds on this share of the tokens on which it fires.
LEAST_SHARE = 0.1
#: A feature is harmful if more than this share of its activation lies on harmful tokens.
HARMFUL_SHARE = 0.8
#: A label names at most so many vocabulary entries.
_ENTRIES = 3


def make_labels(
    statistics: FeatureStatistics, vocabulary: VocabularyCounts, tokenizer: PreTrainedTokenizerBase
) -> Labels:
    """A label for every feature: the concept whose tokens its firing fits best by F1, or a vocabulary entry
    that fits better; "never fires" for a feature that did not fire.

    F1 is 2·(tokens with both)/(tokens on which it fires + tokens of the concept). Of equal concepts the one
    met first counts. A concept that holds of every token says nothing and is no label. A label of an entry
    names others as well, if F1 of all together is better. Precision and recall are as `FeatureLabel` has
    them, and stated by language for languages with at least LEAST_TOKENS tokens to take the share of; tokens
    of an unknown language count in none. Both counts must be of the same tokens.
    """
    concepts = _Concepts(statistics)
    entries = _Entries(statistics, vocabulary, tokenizer)
    groups, total = statistics.groups, statistics.total
    harmful = _harmful(statistics)
    largest = statistics.largest.tolist()
    labels = []
    for feature, column in enumerate(statistics.fired.T.cpu()):
        fired = _Firing(groups, column.tolist())
        if not fired.total:
            labels.append(FeatureLabel(feature, NEVER_FIRES, density=0.0))
            continue
        if entries.f1[feature] > concepts.f1[feature]:
            name, described = entries.name(feature), entries.described(feature)
        else:
            name = concepts.name(feature)
            described = concepts.described(name, fired.by_group)
        labels.append(
            FeatureLabel(
                feature,
                name,
                subjects=fired.common("subject"),
                languages=fired.common("language"),
                precision=round(sum(hits for hits, _ in described.values()) / fired.total, 4),
                recall=_recall(described),
                max_activation=round(largest[feature], 4),
                density=round(fired.total / total, 6),
                harmful=harmful[feature],
                precision_by_language=_precision(described, fired.by("language")),
            )
        )
    return Labels(labels)


#: For each language: how many of the tokens that a label describes its feature fires on, and how many there
#: are.
_Described = Mapping[str, tuple[int, int]]


class _Firing:
    """On how many tokens of each group one feature fires."""

    def __init__(self, groups: Sequence[TokenTruth], by_group: Sequence[int]) -> None:
        self._groups = groups
        self.by_group = by_group
        self.total = sum(by_group)

    def by(self, attribute: Literal["subject", "language"]) -> Counter[str]:
        """The tokens by subject or by language, where that is known."""
        counts: Counter[str] = Counter()
        for group, count in zip(self._groups, self.by_group, strict=True):
            if name := getattr(group, attribute):
                counts[name] += count
        return counts

    def common(self, attribute: Literal["subject", "language"]) -> tuple[str, ...]:
        """The subjects or languages of at least LEAST_SHARE of the tokens, most frequent first."""
        counts = self.by(attribute).most_common()
        return tuple(name for name, count in counts if count >= LEAST_SHARE * self.total)


class _Concepts:
    """The concepts of all groups, and the one that fits each feature best: f1 is −1 where there is none."""

    def __init__(self, statistics: FeatureStatistics) -> None:
        self._groups = statistics.groups
        self._sizes: list[int] = statistics.sizes.tolist()
        self._members: dict[str, list[int]] = {}
        for number, group in enumerate(self._groups):
            for concept in dict.fromkeys(group.concepts):
                self._members.setdefault(concept, []).append(number)
        self._names = list(self._members)
        self.f1 = [-1.0] * statistics.features
        if self._names:
            self._fit(statistics)

    def _fit(self, statistics: FeatureStatistics) -> None:
        shape = len(self._names), len(self._groups)
        holds = torch.zeros(shape, dtype=torch.float64, device=statistics.sizes.device)
        for row, members in enumerate(self._members.values()):
            holds[row, members] = 1.0
        sizes = holds @ statistics.sizes.double()
        f1 = 2.0 * (holds @ statistics.fired.double()) / (statistics.active + sizes[:, None])
        f1[sizes == statistics.total] = -1.0
        best, rows = f1.max(0)
        self.f1 = best.tolist()
        self._best: list[int] = rows.tolist()

    def name(self, feature: int) -> str:
        """The concept that fits a feature best."""
        return self._names[self._best[feature]]

    def described(self, concept: str, fired: Sequence[int]) -> _Described:
        """What a concept describes, for a feature that fires on `fired` tokens of each group."""
        described: dict[str, tuple[int, int]] = {}
        for number in self._members[concept]:
            language = self._groups[number].language
            hits, size = described.get(language, (0, 0))
            described[language] = hits + fired[number], size + self._sizes[number]
        return described


class _Entries:
    """The vocabulary entries that fit each feature best: f1 is the best one's, 0 where the feature never
    fires. Entries are taken by their F1, those of equal F1 by their id."""

    def __init__(
        self, statistics: FeatureStatistics, vocabulary: VocabularyCounts, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        entries = vocabulary.entries()
        sizes, active = vocabulary.sizes[entries.tokens], statistics.active
        f1 = 2.0 * entries.counts.double() / (active[entries.features] + sizes)
        best = torch.zeros(statistics.features, dtype=torch.float64, device=f1.device)
        self.f1: list[float] = best.scatter_reduce(0, entries.features, f1, "amax").tolist()
        edges = torch.searchsorted(
            entries.features, torch.arange(statistics.features + 1, device=f1.device)
        ).tolist()
        columns = f1.cpu(), entries.tokens.cpu(), entries.counts.cpu(), sizes.cpu()
        self._chosen = [
            _fitting([column[start:end] for column in columns], fires)
            for start, end, fires in zip(edges, edges[1:], active.tolist(), strict=False)
        ]
        self._tokenizer = tokenizer
        owners = [feature for feature, tokens in enumerate(self._chosen) for _ in tokens]
        pairs = owners, [token for tokens in self._chosen for token in tokens]
        self._described: dict[int, dict[str, tuple[int, int]]] = {}
        by_language = vocabulary.by_language(
            *(torch.tensor(column, dtype=torch.int64, device=f1.device) for column in pairs)
        )
        for language, (hits, totals) in by_language.items():
            for feature, hit, total in zip(owners, hits.tolist(), totals.tolist(), strict=True):
                described = self._described.setdefault(feature, {})
                before = described.get(language, (0, 0))
                described[language] = before[0] + hit, before[1] + total

    def name(self, feature: int) -> str:
        """The entries of a feature, in quotation marks."""
        texts = [str(self._tokenizer.decode([token])) for token in self._chosen[feature]]
        return "token " + ", ".join(repr(text.strip() or text) for text in texts)

    def described(self, feature: int) -> _Described:
        """What the entries of a feature describe."""
        return self._described[feature]


def _fitting(columns: Sequence[Tensor], active: int) -> list[int]:
    """The entry of the best F1, then the next ones while F1 of all together rises, at most _ENTRIES.

    columns: F1, entry, tokens of it on which the feature fires, and all, of every entry that it fires on.
    active: the tokens on which it fires.
    """
    order = columns[0].sort(descending=True, stable=True).indices[:_ENTRIES]
    chosen: list[int] = []
    hits = size = 0
    fit = 0.0
    for token, hit, total in zip(*(column[order].tolist() for column in columns[1:]), strict=True):
        hits, size = hits + hit, size + total
        if (together := 2.0 * hits / (active + size)) <= fit:
            break
        fit = together
        chosen.append(token)
    return chosen


def _harmful(statistics: FeatureStatistics) -> list[bool]:
    """Whether each feature's activation lies on harmful tokens for the most part."""
    groups = [number for number, group in enumerate(statistics.groups) if group.harmful]
    flags: list[bool] = (statistics.mass[groups].sum(0) > HARMFUL_SHARE * statistics.mass.sum(0)).tolist()
    return flags


def _recall(described: _Described) -> Mapping[str, float]:
    return MappingProxyType(
        {
            language: round(hits / size, 4)
            for language, (hits, size) in sorted(described.items())
            if language and size >= LEAST_TOKENS
        }
    )


def _precision(described: _Described, fired: Counter[str]) -> Mapping[str, float]:
    return MappingProxyType(
        {
            language: round(described.get(language, (0, 0))[0] / count, 4)
            for language, count in sorted(fired.items())
            if count >= LEAST_TOKENS
        }
    )
