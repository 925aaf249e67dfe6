"""Examples: histograms and strongest tokens are those of a plain loop, whatever the batches."""

from collections.abc import Iterator

import pytest
import torch

from saegis_lab.training.activations import FeatureBatch
from saegis_lab.training.examples import (
    BEFORE,
    BEHIND,
    BINS,
    PIECES,
    Histograms,
    StrongestTokens,
    gather_examples,
)
from saegis_server.sae.examples import Examples, Piece
from tests.rpc import tiny
from tests.tiers import sized

FEATURES = 6


def some_texts(seed: int) -> list[torch.Tensor]:
    """The activations of texts of many lengths, float32 [tokens, FEATURES] each; many are 0, and the first
    token of each text is not read."""
    chance = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(int(torch.randint(2, 14, (), generator=chance))):
        length = int(torch.randint(1, 60, (), generator=chance))
        values = torch.randn(length, FEATURES, generator=chance) * 4.0 ** torch.arange(-1, FEATURES - 1)
        values[:, -1] = 0.0
        texts.append(torch.where(torch.rand(length, FEATURES, generator=chance) < 0.5, values.relu(), 0.0))
    return texts


def batches(texts: list[torch.Tensor], size: int) -> Iterator[FeatureBatch]:
    """The tokens in parts of a size, which cut texts in two; a token's id is its place and its text."""
    numbers = torch.cat([torch.full((len(text),), number) for number, text in enumerate(texts)])
    places = torch.cat([torch.arange(1, len(text) + 1) for text in texts])
    values = torch.cat(texts)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        ids = places[part] + 100 * numbers[part]
        yield FeatureBatch(numbers[part], places[part], ids, values[part])


def gathered(texts: list[torch.Tensor], size: int) -> Examples:
    histograms, strongest = Histograms(FEATURES), StrongestTokens(FEATURES)
    for batch in batches(texts, size):
        histograms.add(batch.activations)
        strongest.add(batch)
    return gather_examples(
        strongest, histograms, batches(texts, 10**6), tiny.sae("x", 1), sum(map(len, texts))
    )


@pytest.mark.parametrize("seed", range(sized(30, 4)))
@pytest.mark.parametrize("size", [7, 64, 10**6])
def test_pieces_and_counts_are_those_of_a_plain_loop(seed: int, size: int) -> None:
    texts = some_texts(seed)
    found = gathered(texts, size)
    for feature in range(FEATURES):
        best = []
        for number, text in enumerate(texts):
            values = text[:, feature].tolist()
            if max(values) > 0.0:
                at = values.index(max(values))
                span = range(max(0, at - BEFORE), min(len(values), at + BEHIND + 1))
                ids = tuple(place + 1 + 100 * number for place in span)
                best.append((-max(values), number, Piece(ids, tuple(values[place] for place in span))))
        expected = tuple(piece for _, _, piece in sorted(best, key=lambda each: each[:2])[:PIECES])
        assert found.pieces(feature) == expected
        told = found.histogram(feature)
        fires = [value for text in texts for value in text[:, feature].tolist() if value > 0.0]
        assert sum(told.counts) == len(fires)
        assert told.tokens == sum(map(len, texts))
        for number, count in enumerate(told.counts):
            low = number * told.width
            assert count == sum(low <= value < low + told.width for value in fires)
        if fires:
            assert BINS / 2 * told.width <= max(fires) < BINS * told.width
        else:
            assert told.width == 0.0


def test_a_histogram_takes_the_greatest_and_the_least_numbers() -> None:
    histograms = Histograms(2)
    histograms.add(torch.tensor([[1e-30, 0.0]]))
    histograms.add(torch.tensor([[1e30, 8.0]]))
    histograms.add(torch.tensor([[1e-30, 7.9]]))
    assert histograms.counts[0].nonzero().squeeze(-1).tolist()[0] == 0
    assert histograms.counts.sum(1).tolist() == [3, 2]
    assert float(histograms.bin_width[1]) == 0.5
    assert histograms.counts[1, 15:17].tolist() == [1, 1]
