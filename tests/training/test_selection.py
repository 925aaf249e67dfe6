"""Selection: a contrast against a plain loop, and that what is chosen holds in every language named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.training.selection import Contrast, choose_features, contrast, score
from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth
from tests.training.statistics_cases import Tokens, random_tokens

LANGUAGES = ("en", "fr", "zh")
KINDS = [TokenTruth(("x",), "x", code, harmful) for code in LANGUAGES for harmful in (False, True)]


def is_harmful(truth: TokenTruth) -> bool:
    return truth.harmful


def collected(tokens: Tokens) -> FeatureStatistics:
    statistics = FeatureStatistics(tokens.activations.shape[1])
    for part in tokens.parts(32):
        statistics.add(part.activations, part.truths)
    return statistics


def some_tokens(seed: int, features: int = 6) -> Tokens:
    """Tokens of every kind; every second feature leans to harmful tokens, more so in some languages."""
    made = random_tokens(seed, 120, features)
    truths = [KINDS[number % len(KINDS)] for number in range(120)]
    lean = torch.ones(120, features)
    for row, truth in enumerate(truths):
        if not truth.harmful:
            lean[row, ::2] = 0.2 * (1 + LANGUAGES.index(truth.language))
    return Tokens(made.ids, made.activations * lean, truths)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 99))
def test_a_contrast_is_that_of_a_plain_loop(seed: int) -> None:
    tokens = some_tokens(seed)
    found = contrast(collected(tokens), is_harmful, LANGUAGES)
    for language in LANGUAGES:
        for wanted, rate, mean, count in (
            (True, found[language].rate_on, found[language].mean_on, found[language].tokens_on),
            (False, found[language].rate_off, found[language].mean_off, found[language].tokens_off),
        ):
            rows = [
                row
                for row, truth in zip(tokens.activations.tolist(), tokens.truths, strict=True)
                if (truth.language, truth.harmful) == (language, wanted)
            ]
            assert count == len(rows)
            for feature in range(6):
                values = [row[feature] for row in rows]
                assert float(rate[feature]) == pytest.approx(sum(v > 0 for v in values) / len(rows))
                assert float(mean[feature]) == pytest.approx(sum(values) / len(rows), rel=1e-5)
        on, off = found[language].mean_on * 20, found[language].mean_off * 20
        assert torch.allclose(found[language].precision, on / (on + off))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 99),
    languages=st.lists(st.sampled_from(LANGUAGES), min_size=1, unique=True),
    precision=st.floats(0.0, 1.0),
    limit=st.integers(1, 8),
)
def test_what_is_chosen_holds_in_every_language_and_nothing_better_is_left(
    seed: int, languages: list[str], precision: float, limit: int
) -> None:
    contrasts = contrast(collected(some_tokens(seed)), is_harmful, languages)
    chosen = choose_features(contrasts, precision, limit)
    scores = score(contrasts)
    holds = [
        feature
        for feature in range(6)
        if all(float(each.precision[feature]) >= precision for each in contrasts.values())
        and float(scores[feature]) > 0
    ]
    assert [each.feature for each in chosen] == sorted(holds, key=lambda f: (-float(scores[f]), f))[:limit]
    for each in chosen:
        assert list(each.by_language) == languages
        assert each.score == float(scores[each.feature])
        for code, figures in each.by_language.items():
            assert figures.precision >= precision
            assert figures.mean_on >= each.score
            assert figures.rate_on == float(contrasts[code].rate_on[each.feature])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 99), precision=st.floats(0.0, 1.0))
def test_more_languages_choose_no_feature_more(seed: int, precision: float) -> None:
    contrasts = contrast(collected(some_tokens(seed)), is_harmful, LANGUAGES)
    one = {each.feature for each in choose_features({"en": contrasts["en"]}, precision, 6)}
    all_three = {each.feature for each in choose_features(contrasts, precision, 6)}
    assert all_three <= one


def test_a_feature_of_english_words_is_told_from_one_of_the_meaning() -> None:
    """Feature 0 fires on harm in English alone and strongly, feature 1 on harm everywhere."""
    truths = [truth for truth in KINDS for _ in range(10)]
    rows = [[5.0 * (t.harmful and t.language == "en"), 1.0 * t.harmful] for t in truths]
    statistics = collected(Tokens(torch.zeros(60, dtype=torch.int64), torch.tensor(rows), truths))
    english = choose_features(contrast(statistics, is_harmful, ("en",)), 0.9, 5)
    assert [each.feature for each in english] == [0, 1]
    both = choose_features(contrast(statistics, is_harmful, ("en", "zh")), 0.9, 5)
    assert [(each.feature, each.score) for each in both] == [(1, 1.0)]


def test_a_language_without_wanted_or_other_tokens_is_refused() -> None:
    statistics = collected(some_tokens(0))
    with pytest.raises(ValueError, match="language 'sw': 0 tokens are wanted and 0 are not"):
        contrast(statistics, is_harmful, ("en", "sw"))
    with pytest.raises(ValueError, match="language 'en': 40 tokens are wanted and 0 are not"):
        contrast(statistics, lambda truth: True, ("en",))


def test_choosing_from_no_language_or_by_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="name at least one language"):
        choose_features({}, 0.5, 3)
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"precision is 1\.5"):
        choose_features({"en": Contrast(one, one, one, one, 1, 1)}, 1.5, 3)
