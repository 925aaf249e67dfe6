"""Contrast: which features tell one set of texts from another, how far, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Firings:
    """The features that fire in a text, int64 [k], and the largest activation of each there, float32 [k]."""

    features: Tensor
    largest: Tensor

    @classmethod
    def of(cls, largest: Tensor) -> "Firings":
        """From the largest activation of every feature in a text, [m]."""
        features = largest.nonzero().squeeze(-1)
        return cls(features, largest[features])


@dataclass(frozen=True, slots=True)
class Side:
    """What features do over one set of texts, float64 [m].

    rate: the share of texts in which each fires; mean: the mean over texts of its largest activation there;
    deviation: the standard deviation of that, of a sample; 0 for a single text.
    """

    rate: Tensor
    mean: Tensor
    deviation: Tensor


class Contrast:
    """The m features of an SAE over two sets of texts, the wanted ones and the others.

    on, off: what each feature does over the wanted texts and over the others. separation, float64 [m]: the
    chance that it is stronger in a wanted text than in another one, by its largest activation in each; equal
    ones count half. difference, float64 [m]: that of the means over the pooled standard deviation, corrected
    for small sets (Hedges' g); not finite where neither set has any spread. p, float64 [m]: of the one-sided
    test of Mann, Whitney and Wilcoxon that it is no stronger in wanted texts, by the normal approximation
    with corrections for ties and continuity, and never below the least that so many firings could give. q:
    the share of false discoveries among all features with a p no greater, as Benjamini and Hochberg bound
    it; features that fire in no text are not tested, and theirs is 1.
    """

    def __init__(self, wanted: Sequence[Firings], others: Sequence[Firings], features: int) -> None:
        """At least one text on each side; features: m."""
        self._sizes = len(wanted), len(others)
        texts = [*wanted, *others]
        counts = torch.tensor([len(each.features) for each in texts])
        self._texts = torch.repeat_interleave(torch.arange(len(texts)), counts)
        self._features = torch.cat([each.features for each in texts])
        self._values = torch.cat([each.largest for each in texts]).double()
        self._count = features
        self._wanted = self._texts < len(wanted)
        self.on, self.off = self._side(self._wanted, len(wanted)), self._side(~self._wanted, len(others))
        self.difference = self._standardised()
        self.separation, self.p = self._ranked()
        fires = self._sums(torch.ones_like(self._values)) > 0.0
        self.tested, self.q = int(fires.sum()), _false_discoveries(self.p, fires)

    def _sums(self, values: Tensor, chosen: Tensor | None = None) -> Tensor:
        """The sum over each feature's firings of some number, float64 [m]."""
        features = self._features if chosen is None else self._features[chosen]
        zeros = torch.zeros(self._count, dtype=torch.float64)
        return zeros.index_add_(0, features, values if chosen is None else values[chosen])

    def _side(self, chosen: Tensor, texts: int) -> Side:
        mean = self._sums(self._values, chosen) / texts
        # Around the mean, since a difference of sums of squares would lose what is small.
        squares = self._sums((self._values - mean[self._features]) ** 2, chosen)
        rate = self._sums(torch.ones_like(self._values), chosen) / texts
        squares += (1.0 - rate) * texts * mean**2
        return Side(rate, mean, (squares / max(1, texts - 1)).sqrt())

    def _standardised(self) -> Tensor:
        on, off = self._sizes
        freedom = max(1, on + off - 2)
        pooled = ((on - 1) * self.on.deviation**2 + (off - 1) * self.off.deviation**2) / freedom
        correction = 1.0 - 3.0 / max(1.0, 4.0 * freedom - 1.0)
        return (self.on.mean - self.off.mean) / pooled.sqrt() * correction

    def _ranked(self) -> tuple[Tensor, Tensor]:
        """The separation and the p value of each feature, from the ranks of its firings among all texts.

        Texts in which it does not fire share the lowest ranks.
        """
        on, off = self._sizes
        ones = torch.ones_like(self._values)
        fired, fired_on = self._sums(ones), self._sums(ones, self._wanted)
        silent = on + off - fired
        ranks, tied = self._ranks()
        among_on = self._sums(silent[self._features] + ranks, self._wanted)
        ties = self._sums(tied**2 - 1.0) + silent**3 - silent
        pairs = on * off
        wins = among_on + (on - fired_on) * (silent + 1.0) / 2.0 - on * (on + 1) / 2.0
        texts = on + off
        spread = (pairs / 12.0 * (texts + 1.0 - ties / (texts * max(1, texts - 1)))).clamp(min=0.0).sqrt()
        excess = (wins - pairs / 2.0 - 0.5) / spread
        p = torch.where(spread > 1e-9, torch.special.erfc(excess / 2.0**0.5) / 2.0, 1.0)
        return wins / pairs, torch.maximum(p, self._least(fired))

    def _ranks(self) -> tuple[Tensor, Tensor]:
        """For each firing its rank among those of its feature, from 1, the mean rank for equal ones; and how
        many are equal, itself included. float64 [k]."""
        order = self._values.sort(stable=True).indices
        order = order[self._features[order].sort(stable=True).indices]
        features, values = self._features[order], self._values[order]
        new = torch.ones(len(order), dtype=torch.bool)
        new[1:] = (features[1:] != features[:-1]) | (values[1:] != values[:-1])
        run = new.cumsum(0) - 1
        equal, first = run.bincount()[run].double(), new.nonzero().squeeze(-1)[run]
        ranks, tied = torch.empty_like(self._values), torch.empty_like(self._values)
        ranks[order] = (first - torch.searchsorted(features, features)) + (equal + 1.0) / 2.0
        tied[order] = equal
        return ranks, tied

    def _least(self, fired: Tensor) -> Tensor:
        """The least p that any order of a feature's firings could give: all texts are equally likely to be
        wanted, and the wanted ones are those where it fires most strongly."""
        on, off = self._sizes
        all_ways = _log_ways(torch.tensor(float(on + off)), torch.tensor(float(on)))
        rest = (on + off - fired).clamp(min=float(off))
        return (_log_ways(rest, rest - off) - all_ways).exp()

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor]:
        """The features of all firings in order, and the text of each, int64 [k]."""
        order = self._features.sort(stable=True).indices
        return self._features[order], self._texts[order]

    def by_language(
        self, feature: int, languages: Sequence[str]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The share of texts in which a feature fires, by language, of the wanted ones and of the others.

        languages: those of all texts, the wanted ones first.
        """
        features, texts = self._by_feature
        first, last = torch.searchsorted(features, torch.tensor([feature, feature + 1])).tolist()
        fired = set(texts[first:last].tolist())
        on = self._sizes[0]
        return _rates(fired, languages, range(on)), _rates(fired, languages, range(on, len(languages)))

    def leaning(self) -> Tensor:
        """The features that lean to the wanted texts, int64 [k]: by the difference of the rates, then by that
        of the means, then by their index."""
        score, lead = self.on.rate - self.off.rate, self.on.mean - self.off.mean
        leaning = ((score > 0.0) | ((score == 0.0) & (lead > 0.0))).nonzero().squeeze(-1)
        order = (-lead[leaning]).sort(stable=True).indices
        order = order[(-score[leaning][order]).sort(stable=True).indices]
        return leaning[order]


def _rates(fired: set[int], languages: Sequence[str], texts: range) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for text in texts:
        hits = counts.setdefault(languages[text], [0, 0])
        hits[0] += text in fired
        hits[1] += 1
    return {language: hits / size for language, (hits, size) in sorted(counts.items())}


def _log_ways(of: Tensor, chosen: Tensor) -> Tensor:
    """The logarithm of how many ways there are to choose some of several, float64."""
    of, chosen = of.double(), chosen.double()
    return torch.lgamma(of + 1.0) - torch.lgamma(chosen + 1.0) - torch.lgamma(of - chosen + 1.0)


def _false_discoveries(p: Tensor, tested: Tensor) -> Tensor:
    """Each p of those tested as the bound of false discoveries by Benjamini and Hochberg, others as 1."""
    order = p.masked_fill(~tested, 2.0).sort(stable=True).indices[: int(tested.sum())]
    places = torch.arange(1, len(order) + 1, dtype=torch.float64)
    bounds = p[order] * len(order) / places
    q = torch.ones_like(p)
    q[order] = bounds.flip(0).cummin(0).values.flip(0).clamp(max=1.0) if len(order) else bounds
    return q
