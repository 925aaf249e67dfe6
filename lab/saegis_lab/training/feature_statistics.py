"""Feature statistics: how often and how strongly each feature fires, by what is known of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saegis_lab.training.token_truth import TokenTruth

#: A float32 counts without loss up to here.
_MOST_TOKENS = 1 << 24


class FeatureStatistics:
    """Sums over all tokens that were added, by group: tokens of which the same is known are one group.

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
