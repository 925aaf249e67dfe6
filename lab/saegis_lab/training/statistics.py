"""Statistics: how often and how strongly features fire, by the truth of tokens and by vocabulary entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.training.texts import TokenTruth

#: The most tokens of a batch: float32 counts exactly up to here.
_MOST_TOKENS = 1 << 24


class FeatureStatistics:
    """Sums over all added tokens by group; tokens of the same truth are one group.

    Batch sums are matrix products in float32, which holds a batch's counts exactly; the sums over batches
    are int64 and float64. With G groups and m features: sizes int64 [G], the tokens of each group; fired
    int64 [G, m], those on which a feature fires; mass float64 [G, m], the sum of its activations, in feature
    units; largest float32 [m], its largest activation, 0 where it never fires. All lie on `device`.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu") -> None:
        self._numbers: dict[TokenTruth, int] = {}
        self.sizes = torch.zeros(0, dtype=torch.int64, device=device)
        self.fired = torch.zeros(0, features, dtype=torch.int64, device=device)
        self.mass = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.largest = torch.zeros(features, device=device)

    def add(self, activations: Tensor, truths: Sequence[TokenTruth]) -> None:
        """Add a batch: activations float32 [n, m] on the statistics' device, and the truth of each token.

        Raises ValueError for shapes that do not fit and activations that are negative or not finite.
        """
        n, features = activations.shape
        if n != len(truths) or features != self.features or n > _MOST_TOKENS:
            raise ValueError(
                f"activations have the shape {[n, features]}; {[len(truths), self.features]} fits the truths "
                f"and the features, and at most {_MOST_TOKENS} tokens go into one batch"
            )
        if not n:
            return
        lowest, highest = activations.aminmax()
        if not (lowest >= 0.0 and torch.isfinite(highest)):
            raise ValueError("activations hold numbers that are negative or not finite")
        numbers = [self._numbers.setdefault(truth, len(self._numbers)) for truth in truths]
        self._grow()
        present, members = torch.unique(torch.tensor(numbers, device=activations.device), return_inverse=True)
        holds = torch.zeros(len(present), n, device=activations.device)
        holds[members, torch.arange(n, device=activations.device)] = 1.0
        self.sizes[present] += holds.sum(1).long()
        self.fired[present] += (holds @ (activations > 0.0).float()).long()
        self.mass[present] += (holds @ activations).double()
        self.largest = torch.maximum(self.largest, activations.amax(0))

    def _grow(self) -> None:
        """Make room for every group that is known."""
        new = len(self._numbers) - len(self.sizes)
        if new:
            self.sizes = torch.cat([self.sizes, self.sizes.new_zeros(new)])
            self.fired = torch.cat([self.fired, self.fired.new_zeros(new, self.features)])
            self.mass = torch.cat([self.mass, self.mass.new_zeros(new, self.features)])

    @property
    def features(self) -> int:
        """m: how many features are counted."""
        return len(self.largest)

    @property
    def groups(self) -> tuple[TokenTruth, ...]:
        """What is known of the tokens of each group, in the order in which the groups were met."""
        return tuple(self._numbers)

    @property
    def total(self) -> int:
        """How many tokens were added."""
        return int(self.sizes.sum())

    @property
    def active(self) -> Tensor:
        """The tokens on which each feature fires, int64 [m]."""
        return self.fired.sum(0)

    @property
    def density(self) -> Tensor:
        """The share of all tokens on which each feature fires, float64 [m]; not a number without tokens."""
        return self.active / self.sizes.sum().double()


#: At least this many firings wait before they are counted together.
_WAITING = 1 << 22


@dataclass(frozen=True, slots=True)
class EntryCounts:
    """Every pair of a feature and a vocabulary entry on which it fires, by feature and then by entry.

    features, tokens and counts: int64 [pairs]; counts are the tokens of that entry on which it fires.
    """

    features: Tensor
    tokens: Tensor
    counts: Tensor


class VocabularyCounts:
    """Counts by feature, vocabulary entry and language. Only what occurs is kept: most features fire on few
    entries, and a dense table would not fit for wide SAEs.

    Counts are int64. A firing is one number, (language·features + feature)·vocabulary + entry.
    """

    def __init__(self, features: int, vocabulary: int, device: torch.device | str = "cpu") -> None:
        self._features = features
        self._vocabulary = vocabulary
        self._languages: dict[str, int] = {}
        self._waiting: list[Tensor] = []
        self._keys = torch.zeros(0, dtype=torch.int64, device=device)
        self._counts = self._keys.clone()
        self._sizes = torch.zeros(0, vocabulary, dtype=torch.int64, device=device)

    def add(self, token_ids: Tensor, activations: Tensor, languages: Sequence[str]) -> None:
        """Add a batch: token_ids int64 [n], activations [n, m], and each token's language, "" if unknown.

        Raises ValueError for shapes that do not fit and token ids outside the vocabulary.
        """
        n, features = activations.shape
        if features != self._features or len(token_ids) != n or len(languages) != n:
            raise ValueError(
                f"activations have the shape {[n, features]}, which does not fit {len(token_ids)} token ids, "
                f"{len(languages)} languages and {self._features} features"
            )
        if not n:
            return
        token_ids = token_ids.to(self._keys.device)
        if not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self._vocabulary:
            raise ValueError(f"token_ids hold ids outside 0 to {self._vocabulary - 1}")
        numbers = [self._languages.setdefault(code, len(self._languages)) for code in languages]
        spoken = torch.tensor(numbers, device=self._keys.device)
        new = len(self._languages) - len(self._sizes)
        self._sizes = torch.cat([self._sizes, self._sizes.new_zeros(new, self._vocabulary)])
        sizes = torch.bincount(spoken * self._vocabulary + token_ids, minlength=self._sizes.numel())
        self._sizes += sizes.view_as(self._sizes)
        rows, fired = (activations > 0.0).nonzero(as_tuple=True)
        self._waiting.append((spoken[rows] * self._features + fired) * self._vocabulary + token_ids[rows])
        if sum(map(len, self._waiting)) > max(_WAITING, len(self._keys)):
            self._settle()

    def _settle(self) -> None:
        """Count the firings that wait."""
        if self._waiting:
            keys, counts = torch.unique(torch.cat(self._waiting), return_counts=True)
            self._waiting.clear()
            self._keys, self._counts = _summed(
                torch.cat([self._keys, keys]), torch.cat([self._counts, counts])
            )

    @property
    def sizes(self) -> Tensor:
        """The tokens of each vocabulary entry, int64 [vocabulary]."""
        return self._sizes.sum(0)

    def entries(self) -> EntryCounts:
        """The counts, languages put together."""
        self._settle()
        keys, counts = _summed(self._keys % (self._features * self._vocabulary), self._counts)
        return EntryCounts(keys // self._vocabulary, keys % self._vocabulary, counts)

    def by_language(self, features: Tensor, tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """For pairs of a feature and an entry, both int64 [k], and each language: the tokens of the entry on
        which the feature fires, and all tokens of the entry, both int64 [k]."""
        self._settle()
        counts = {}
        for number, language in enumerate(self._languages):
            keys = (number * self._features + features) * self._vocabulary + tokens
            start = torch.searchsorted(self._keys, keys)
            held = torch.searchsorted(self._keys, keys, right=True) > start
            hits = torch.zeros_like(keys)
            hits[held] = self._counts[start[held]]
            counts[language] = hits, self._sizes[number, tokens]
        return counts


def _summed(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted distinct keys, and the sum of the counts of each."""
    distinct, places = torch.unique(keys, return_inverse=True)
    return distinct, torch.zeros_like(distinct).index_add_(0, places, counts)
