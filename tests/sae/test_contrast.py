"""Contrast: effect sizes and chances against SciPy, and how often two equal sets seem to differ."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from saegis_server.sae.contrast import Contrast, Firings
from tests.tiers import sized

FEATURES = 7


def some_texts(seed: int, texts: int, features: int = FEATURES, levels: int = 4) -> torch.Tensor:
    """The largest activation of features in texts, float32 [texts, features]: many zeros and many equal."""
    chance = np.random.default_rng(seed)
    values = chance.integers(0, levels, (texts, features)) * chance.choice([0.5, 1.0, 2.5], features)
    rare = chance.random((texts, features)) < chance.random(features)
    return torch.tensor(np.where(rare, values, 0.0), dtype=torch.float32)


def contrast(on: torch.Tensor, off: torch.Tensor) -> Contrast:
    return Contrast([Firings.of(row) for row in on], [Firings.of(row) for row in off], on.shape[1])


@settings(deadline=None, max_examples=sized(200, 40))
@given(seed=st.integers(0, 2**32 - 1), on=st.integers(2, 30), off=st.integers(2, 30))
def test_figures_are_those_of_scipy(seed: int, on: int, off: int) -> None:
    wanted, others = some_texts(seed, on), some_texts(seed + 1, off)
    found = contrast(wanted, others)
    a, b = wanted.double().numpy(), others.double().numpy()
    np.testing.assert_allclose(found.on.rate, (a > 0).mean(0))
    np.testing.assert_allclose(found.off.mean, b.mean(0))
    np.testing.assert_allclose(found.on.deviation, a.std(0, ddof=1), atol=1e-12)
    for feature in range(FEATURES):
        x, y = a[:, feature], b[:, feature]
        if len(set(x) | set(y)) == 1:
            assert (float(found.p[feature]), float(found.separation[feature])) == (1.0, 0.5)
            continue
        expected = stats.mannwhitneyu(x, y, alternative="greater", method="asymptotic")
        assert float(found.separation[feature]) == pytest.approx(expected.statistic / (on * off))
        fired = int((x > 0).sum() + (y > 0).sum())
        least = stats.hypergeom(on + off, min(fired, on), on).pmf(min(fired, on))
        assert float(found.p[feature]) == pytest.approx(max(expected.pvalue, least))
        pooled = ((on - 1) * x.var(ddof=1) + (off - 1) * y.var(ddof=1)) / (on + off - 2)
        if pooled:
            g = (x.mean() - y.mean()) / pooled**0.5 * (1 - 3 / (4 * (on + off) - 9))
            assert float(found.difference[feature]) == pytest.approx(g)
    tested = np.flatnonzero((a > 0).any(0) | (b > 0).any(0))
    expected_q = stats.false_discovery_control(found.p.numpy()[tested])
    np.testing.assert_allclose(found.q.numpy()[tested], expected_q)
    assert set(found.q.numpy()[np.setdiff1d(np.arange(FEATURES), tested)]) <= {1.0}


def test_no_p_is_below_what_so_few_texts_can_show() -> None:
    """Of 20 ways to choose 3 wanted texts of 6 one is the clearest; the normal approximation says 0.04."""
    on, off = torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    assert float(contrast(on, off).p[0]) == pytest.approx(1 / 20)
    one = contrast(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
    assert (float(one.p[0]), float(one.separation[0])) == (0.5, 1.0)
    assert not torch.isfinite(one.difference[0])


def test_two_equal_sets_give_at_most_five_percent_false_discoveries() -> None:
    """All discoveries of a contrast of equal sets are false: at most in 5 % of contrasts is there any."""
    texts = some_texts(0, 80, features=300, levels=9)
    generator = torch.Generator().manual_seed(0)
    splits, false = sized(1000, 200), 0
    for _ in range(splits):
        order = torch.randperm(80, generator=generator)
        false += bool((contrast(texts[order[:40]], texts[order[40:]]).q <= 0.05).any())
    assert false <= 0.05 * splits


def test_what_differs_is_discovered_and_leads() -> None:
    texts = some_texts(1, 80, features=300)
    on, off = texts[:40], texts[40:]
    on[:, 17], off[:, 17] = 2.0, 0.0
    on[:30, 40], off[:, 40] = 5.0, 0.0
    found = contrast(on, off)
    assert found.leaning()[:2].tolist() == [17, 40]
    assert float(found.q[17]) < 1e-6
    assert float(found.q[40]) < 1e-6


def test_features_lean_by_rates_then_means_then_index() -> None:
    on = torch.tensor([[1.0, 3.0, 0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 0.0, 1.0, 2.0, 1.0]])
    off = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0, 2.0]])
    assert contrast(on, off).leaning().tolist() == [0, 3, 1, 4]


def test_rates_are_told_by_language() -> None:
    on, off = torch.tensor([[1.0], [0.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    rates = contrast(on, off).by_language(0, ["en", "en", "fr", "en", "sw"])
    assert rates == ({"en": 0.5, "fr": 1.0}, {"en": 0.0, "sw": 1.0})


def test_an_sae_whose_features_never_fire_has_nothing_to_discover() -> None:
    silent = contrast(torch.zeros(3, 5), torch.zeros(4, 5))
    assert silent.leaning().tolist() == []
    assert silent.q.tolist() == silent.p.tolist() == [1.0] * 5
