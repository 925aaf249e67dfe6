"""Feature statistics: against a plain loop, whatever the batches, and what is refused."""

import pytest
import torch
from hypothesis import given, settings

from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth
from tests.training.statistics_cases import TRUTHS, Tokens, batch_sizes, random_tokens, tokens


def collected(given_tokens: Tokens, size: int) -> FeatureStatistics:
    statistics = FeatureStatistics(given_tokens.activations.shape[1])
    for part in given_tokens.parts(size):
        statistics.add(part.activations, part.truths)
    return statistics


@settings(deadline=None, max_examples=40)
@given(tokens=tokens, size=batch_sizes)
def test_every_sum_is_that_of_a_plain_loop(tokens: Tokens, size: int) -> None:
    statistics = collected(tokens, size)
    fired: dict[tuple[TokenTruth, int], int] = {}
    mass: dict[tuple[TokenTruth, int], float] = {}
    for row, truth in zip(tokens.activations.tolist(), tokens.truths, strict=True):
        for feature, value in enumerate(row):
            fired[truth, feature] = fired.get((truth, feature), 0) + (value > 0)
            mass[truth, feature] = mass.get((truth, feature), 0.0) + value
    assert set(statistics.groups) == set(tokens.truths)
    for number, group in enumerate(statistics.groups):
        assert statistics.sizes[number] == tokens.truths.count(group)
        for feature in range(statistics.features):
            assert statistics.fired[number, feature] == fired[group, feature]
            assert statistics.mass[number, feature] == pytest.approx(mass[group, feature], rel=1e-5)
    assert statistics.total == len(tokens.truths)
    assert statistics.largest.tolist() == tokens.activations.amax(0).tolist()
    assert statistics.active.tolist() == (tokens.activations > 0).sum(0).tolist()
    assert statistics.density.tolist() == [
        pytest.approx(sum(row[feature] > 0 for row in tokens.activations.tolist()) / len(tokens.truths))
        for feature in range(statistics.features)
    ]


def test_counts_go_on_where_float32_would_stop() -> None:
    """2^24 + 1 is no float32: a sum in it would stay where it is."""
    statistics = FeatureStatistics(1)
    statistics.add(torch.ones(1, 1), TRUTHS[:1])
    statistics.sizes += 1 << 24
    statistics.fired += 1 << 24
    statistics.mass += float(1 << 24)
    for _ in range(3):
        statistics.add(torch.ones(1, 1), TRUTHS[:1])
    assert statistics.total == int(statistics.active) == int(statistics.mass) == (1 << 24) + 4


def test_an_empty_batch_changes_nothing() -> None:
    statistics = collected(random_tokens(0, 9, 2), 9)
    before = statistics.fired.clone()
    statistics.add(torch.zeros(0, 2), [])
    assert torch.equal(statistics.fired, before)


@pytest.mark.parametrize(
    ("activations", "truths", "message"),
    [
        (torch.zeros(2, 3), 1, r"shape \[2, 3\]; \[1, 3\] fits"),
        (torch.zeros(2, 4), 2, r"shape \[2, 4\]; \[2, 3\] fits"),
        (torch.tensor([[1.0, float("nan"), 0.0]]), 1, "negative or not finite"),
        (torch.tensor([[1.0, float("inf"), 0.0]]), 1, "negative or not finite"),
        (torch.tensor([[1.0, -0.5, 0.0]]), 1, "negative or not finite"),
    ],
)
def test_what_cannot_be_counted_is_refused(activations: torch.Tensor, truths: int, message: str) -> None:
    statistics = FeatureStatistics(3)
    with pytest.raises(ValueError, match=message):
        statistics.add(activations, list(TRUTHS[:truths]))
    assert statistics.total == 0
