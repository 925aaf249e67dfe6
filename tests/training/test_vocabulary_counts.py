"""Vocabulary counts: against a plain loop, whatever the batches and however often they are put together."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings

from saegis_lab.training import statistics
from saegis_lab.training.statistics import VocabularyCounts
from tests.training.statistics_cases import VOCABULARY, Tokens, batch_sizes, tokens


def collected(given_tokens: Tokens, size: int) -> VocabularyCounts:
    counts = VocabularyCounts(given_tokens.activations.shape[1], VOCABULARY)
    for part in given_tokens.parts(size):
        counts.add(part.ids, part.activations, [truth.language for truth in part.truths])
    return counts


@pytest.mark.parametrize("waiting", [0, 1 << 22])
@settings(deadline=None, max_examples=40)
@given(tokens=tokens, size=batch_sizes)
def test_every_count_is_that_of_a_plain_loop(waiting: int, tokens: Tokens, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_WAITING", waiting)
        counts = collected(tokens, size)
    expected: Counter[tuple[int, int]] = Counter()
    spoken: Counter[tuple[str, int, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    for token, row, truth in zip(
        tokens.ids.tolist(), tokens.activations.tolist(), tokens.truths, strict=True
    ):
        sizes[truth.language, token] += 1
        for feature, value in enumerate(row):
            if value > 0:
                expected[feature, token] += 1
                spoken[truth.language, feature, token] += 1
    entries = counts.entries()
    pairs = list(zip(entries.features.tolist(), entries.tokens.tolist(), strict=True))
    assert pairs == sorted(expected)
    assert entries.counts.tolist() == [expected[pair] for pair in pairs]
    assert counts.sizes.tolist() == torch.bincount(tokens.ids, minlength=VOCABULARY).tolist()
    every = [(f, t) for f in range(tokens.activations.shape[1]) for t in range(VOCABULARY)]
    found = counts.by_language(*(torch.tensor(column) for column in zip(*every, strict=True)))
    assert set(found) == {truth.language for truth in tokens.truths}
    for language, (hits, totals) in found.items():
        assert hits.tolist() == [spoken[language, *pair] for pair in every]
        assert totals.tolist() == [sizes[language, token] for _, token in every]


def test_where_nothing_fires_there_is_nothing() -> None:
    counts = VocabularyCounts(2, VOCABULARY)
    counts.add(torch.tensor([3, 3]), torch.zeros(2, 2), ["en", "fr"])
    assert len(counts.entries().counts) == 0
    hits, totals = counts.by_language(torch.tensor([1]), torch.tensor([3]))["fr"]
    assert (hits.tolist(), totals.tolist()) == ([0], [1])


@pytest.mark.parametrize(
    ("ids", "activations", "languages", "message"),
    [
        ([1], torch.zeros(2, 2), ["en", "en"], "does not fit 1 token ids, 2 languages and 2 features"),
        ([1, 2], torch.zeros(2, 2), ["en"], "2 token ids, 1 languages"),
        ([1, 2], torch.zeros(2, 3), ["en", "en"], r"shape \[2, 3\]"),
        ([1, VOCABULARY], torch.zeros(2, 2), ["en", "en"], f"outside 0 to {VOCABULARY - 1}"),
        ([1, -1], torch.zeros(2, 2), ["en", "en"], "outside 0 to"),
    ],
)
def test_what_does_not_fit_is_refused(
    ids: list[int], activations: torch.Tensor, languages: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VocabularyCounts(2, VOCABULARY).add(torch.tensor(ids), activations, languages)
