"""Detectors against plain loops: the area under the curve, the features' scores, and who decides what."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.evaluation.coverage import with_features
from saegis_lab.evaluation.detectors import (
    DetectorReadings,
    Detectors,
    area_under_curve,
    compare_detectors,
)
from saegis_lab.evaluation.linear_probe import fitted_probe
from saegis_lab.training.activations import TokenBatch
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.autoencoder import Architecture
from tests.sae.sae_cases import random_sae

SAE = random_sae(Architecture.JUMPRELU)
FEATURES = (5, 2, 9)
#: Of each language eight texts, every second one wanted, and a last one without a token.
TRUTHS = tuple(
    TokenTruth(language=code, harmful=number % 2 == 0) for code in ("en", "zh", "de") for number in range(8)
)
TRUTHS += (TokenTruth(language="en", harmful=True),)


def tokens(seed: int = 0) -> list[torch.Tensor]:
    """The activations of each text's tokens; those of wanted texts lie elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    drawn = [
        2.0 * torch.randn(1 + number % 4, SAE.width, generator=rng) + (0.7 if truth.harmful else 0.0)
        for number, truth in enumerate(TRUTHS[:-1])
    ]
    return [*drawn, torch.zeros(0, SAE.width)]


def readings(texts: list[torch.Tensor], size: int = 7) -> DetectorReadings:
    """The readings of all tokens, shuffled, in batches of `size`."""
    numbers = torch.cat([torch.full((len(x),), number) for number, x in enumerate(texts)])
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(1))
    made = DetectorReadings(with_features(SAE, FEATURES), FEATURES, len(texts))
    for part in torch.split(order, size):
        made.add(TokenBatch(numbers[part], part, part, torch.cat(texts)[part]))
    return made


def compared(texts: list[torch.Tensor], size: int = 7, chose: tuple[str, ...] = ("en", "zh")) -> Detectors:
    return compare_detectors(
        readings(texts, size), TRUTHS, lambda truth: truth.harmful, "harmful", chose, "layers.1.resid_post"
    )


def counted(wanted: list[float], others: list[float]) -> float:
    """Every pair, one by one."""
    wins = sum(1.0 if one > other else 0.5 if one == other else 0.0 for one in wanted for other in others)
    return wins / (len(wanted) * len(others))


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30)
)
def test_the_area_is_the_share_of_pairs(wanted: list[int], others: list[int]) -> None:
    got = area_under_curve(torch.tensor(wanted).float(), torch.tensor(others).float())
    assert got == pytest.approx(counted(list(map(float, wanted)), list(map(float, others))), abs=1e-15)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_features_score_is_the_greatest_sum_over_tokens(size: int) -> None:
    texts = tokens()
    result = compared(texts, size)
    fired = [SAE.encode(x)[:, list(FEATURES)] for x in texts]
    chosen = [truth.harmful and truth.language != "de" for truth in TRUTHS]
    largest = [
        max(
            float(each[:, column].max())
            for each, mine in zip(fired, chosen, strict=True)
            if mine and len(each)
        )
        for column in range(3)
    ]
    assert [each.feature for each in result.features] == list(FEATURES)
    assert [each.largest for each in result.features] == pytest.approx(largest, rel=1e-5)
    assert min(largest) > 0.0
    scores = [
        max((sum(f / top for f, top in zip(row, largest, strict=True)) for row in each.tolist()), default=0.0)
        for each in fired
    ]
    for row in result.rows:
        sides = [
            [
                score
                for score, truth in zip(scores[:-1], TRUTHS, strict=False)
                if (truth.language, truth.harmful) == (row.language, kind)
            ]
            for kind in (True, False)
        ]
        assert row.features == pytest.approx(counted(*sides))
        assert (row.wanted, row.others) == (4, 4)
    assert result.left_out == 1


def test_a_feature_that_never_fires_where_it_was_chosen_counts_nothing() -> None:
    made = readings(tokens())
    assert torch.equal(made.scores(torch.zeros(3)), torch.zeros(len(TRUTHS)))
    assert torch.equal(made.largest(torch.zeros(len(TRUTHS), dtype=torch.bool)), torch.zeros(3))


def test_the_probe_is_fitted_on_the_choosing_languages_and_told_there_on_the_other_half() -> None:
    texts = tokens()
    result = compared(texts)
    pooled = [each.mean(0) if result.probe.pooling == "mean" else each.amax(0) for each in texts[:-1]]
    x = torch.stack([*pooled, torch.zeros(SAE.width)])
    wanted = torch.tensor([truth.harmful for truth in TRUTHS])
    there = {code: torch.tensor([truth.language == code for truth in TRUTHS]) for code in ("en", "zh", "de")}
    for code in there:
        there[code][-1] = False
    probe = fitted_probe(x[~there["de"]][:-1], wanted[~there["de"]][:-1], result.probe.penalty)
    rows = {row.language: row for row in result.rows}
    scores = probe.scores(x)
    german = (scores[there["de"] & kind].tolist() for kind in (wanted, ~wanted))
    assert rows["de"].probe == pytest.approx(counted(*german))
    # Texts 0, 4 and 1, 5 of each language are one half, 2, 6 and 3, 7 the other.
    first = torch.tensor([number % 8 in (0, 1, 4, 5) for number in range(len(TRUTHS))])
    for code in ("en", "zh"):
        areas = []
        for train in (first, ~first):
            mine = train & ~there["de"]
            mine[-1] = False
            scores = fitted_probe(x[mine], wanted[mine], result.probe.penalty).scores(x)
            sides = (scores[there[code] & ~train & kind].tolist() for kind in (wanted, ~wanted))
            areas.append(counted(*sides))
        assert rows[code].probe == pytest.approx(sum(areas) / 2)
    held_out = [rows[code].probe for code in ("en", "zh")]
    assert result.probe.held_out == pytest.approx(sum(each or 0.0 for each in held_out) / 2)
    assert [row.language for row in result.rows if row.chose] == ["en", "zh"]


def test_another_language_decides_nothing() -> None:
    """With German texts that are wholly different only the German row changes."""
    texts = tokens()
    others = [100.0 * x if truth.language == "de" else x for x, truth in zip(texts, TRUTHS, strict=True)]
    first, second = compared(texts), compared(others)
    german = next(row for row in second.rows if row.language == "de")
    rows = tuple(german if row.language == "de" else row for row in first.rows)
    assert second == replace(first, rows=rows)


def test_a_language_without_enough_texts_to_choose_in_is_refused() -> None:
    with pytest.raises(ValueError, match="language 'sw': 0 texts are harmful; a probe needs two"):
        compared(tokens(), chose=("en", "sw"))
    with pytest.raises(ValueError, match="--chosen-from: name the languages"):
        compared(tokens(), chose=())
