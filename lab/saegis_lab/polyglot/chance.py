"""Chance: seeded choices that keep account of how surprising they were, so that a text's entropy is known."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """Choices by a seed; `surprise` is −log of the probability of all choices so far, in nats.

    Where different choices may lead to the same text, `surprise` is an upper bound of the text's own
    information: its mean over documents is at least the entropy of the texts.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self.surprise = 0.0

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, all alike likely."""
        self.surprise += math.log(len(options))
        return self._random.choice(options)

    def number(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`, both included."""
        self.surprise += math.log(most - least + 1)
        return self._random.randint(least, most)

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """One of `options` with a probability in proportion to its weight."""
        index = self._random.choices(range(len(options)), weights)[0]
        self.surprise -= math.log(weights[index] / sum(weights))
        return options[index]

    def happens(self, probability: float) -> bool:
        """True with `probability`; nothing is drawn where there is no choice."""
        if probability <= 0.0 or probability >= 1.0:
            return probability >= 1.0
        return self.weighted((True, False), (probability, 1.0 - probability))

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """`count` of `options` in random order, none twice."""
        self.surprise += math.lgamma(len(options) + 1) - math.lgamma(len(options) - count + 1)
        return self._random.sample(options, count)
