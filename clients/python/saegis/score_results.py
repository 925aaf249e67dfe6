"""What scoring a text returns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from saegis.results import Receipt


@dataclass(frozen=True, slots=True)
class Score:
    """The answer to `score`: how likely each token of a text is, as steered and plainly.

    The tuples of numbers have one entry less than there are tokens: entry i is of token i + 1, given tokens
    0 to i. Logarithms are natural.
    """

    request_id: str
    token_ids: tuple[int, ...]
    """All tokens of the text."""
    logprobs: tuple[float, ...]
    """Log probabilities under the model as steered."""
    plain_logprobs: tuple[float, ...]
    """Log probabilities under the operator's rules alone or, where `unruled`, under the model as it is."""
    divergences: tuple[float, ...]
    """KL(plain || steered) of the distributions of the next token, in nats."""
    receipt: Receipt

    @property
    def divergence(self) -> float:
        """The mean of the divergences, in nats a token."""
        return fmean(self.divergences)

    @property
    def perplexity(self) -> float:
        """Perplexity under the model as steered: exp of the mean negative log probability."""
        return _perplexity(self.logprobs)

    @property
    def plain_perplexity(self) -> float:
        """Perplexity in the plain reading."""
        return _perplexity(self.plain_logprobs)


def _perplexity(logprobs: Sequence[float]) -> float:
    try:
        return math.exp(-fmean(logprobs))
    except OverflowError:
        return math.inf
