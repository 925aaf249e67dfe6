"""Random activations with what is known of their tokens, and a hypothesis strategy for them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from saegis_lab.training.texts import TokenTruth

VOCABULARY = 7
TRUTHS = (
    TokenTruth(("cat", "cat in en", "English"), "cat", "en"),
    TokenTruth(("cat", "cat in fr", "French"), "cat", "fr"),
    TokenTruth(("poison", "poison in fr", "French"), "poison", "fr", harmful=True),
    TokenTruth(("English",), "", "en"),
    TokenTruth(),
)


@dataclass(frozen=True)
class Tokens:
    """Some tokens: ids [n], activations [n, m], and the truth of each, of length n."""

    ids: Tensor
    activations: Tensor
    truths: list[TokenTruth]

    def parts(self, size: int) -> "list[Tokens]":
        """The same in batches of `size`."""
        return [
            Tokens(self.ids[at : at + size], self.activations[at : at + size], self.truths[at : at + size])
            for at in range(0, len(self.ids), size)
        ]


def random_tokens(seed: int, n: int, features: int) -> Tokens:
    """Sparse random activations, about a third of them above 0."""
    generator = torch.Generator().manual_seed(seed)
    activations = (torch.randn(n, features, generator=generator) - 0.4).relu()
    ids = torch.randint(0, VOCABULARY, (n,), generator=generator)
    which = torch.randint(0, len(TRUTHS), (n,), generator=generator).tolist()
    return Tokens(ids, activations, [TRUTHS[number] for number in which])


tokens = st.builds(random_tokens, seed=st.integers(0, 999), n=st.integers(1, 60), features=st.integers(1, 5))
batch_sizes = st.integers(1, 70)
