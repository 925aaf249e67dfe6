"""Neighbours are those of a plain loop in float64, and those that there are."""

import math

import pytest
import torch

from saegis_server.sae import neighbours as module
from saegis_server.sae.autoencoder import Architecture
from saegis_server.sae.neighbours import is_searchable, neighbours
from tests.sae.sae_cases import FEATURES, random_sae


def cosine(one: list[float], other: list[float]) -> float:
    """The cosine of two rows, in float64."""
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@pytest.mark.parametrize("at_once", [1, 40, 2**22])
def test_neighbours_are_those_of_a_plain_loop(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    for seed in range(5):
        sae = random_sae(Architecture.STANDARD, seed)
        rows = sae.W_dec.double().tolist()
        for feature in range(FEATURES):
            told = neighbours(sae, feature, FEATURES)
            expected = {
                each: cosine(rows[feature], rows[each]) for each in range(FEATURES) if each != feature
            }
            assert {each.feature for each in told} == set(expected)
            for each in told:
                assert each.cosine == pytest.approx(expected[each.feature], abs=1e-6)
            values = [each.cosine for each in told]
            assert values == sorted(values, reverse=True)
            assert neighbours(sae, feature, 2) == told[:2]


def test_what_writes_nothing_is_nobodys_neighbour_and_has_none() -> None:
    sae = random_sae(Architecture.STANDARD, 1)
    sae.W_dec[1] = torch.zeros(sae.W_dec.shape[1])
    assert 1 not in {each.feature for each in neighbours(sae, 0, FEATURES)}
    assert neighbours(sae, 1, FEATURES) == []


def test_a_large_decoder_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae(Architecture.STANDARD, 1)
    assert is_searchable(sae)
    monkeypatch.setattr(module, "MOST_NUMBERS", sae.W_dec.numel() - 1)
    assert not is_searchable(sae)
