"""Candidates against a loop over texts, languages and features."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.filters.candidates import (
    by_precision,
    firings,
    near_candidates,
    quiet_features,
    subject_scores,
)
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.training.activations import FeatureBatch, feature_batches
from saegis_lab.training.texts import LabelledText
from tests.filters import world


def texts_of(seed: int) -> tuple[list[LabelledText], torch.Tensor]:
    """Texts of three labels in two languages, and which of five features fire in them."""
    chance = random.Random(seed)
    texts = [
        LabelledText("x", label, code, label != "bread")
        for label in ("poison", "fraud", "bread")
        for code in ("en", "zh")
        for _ in range(chance.randint(1, 4))
    ]
    fired = torch.tensor([[chance.random() < 0.5 for _ in range(5)] for _ in texts])
    return texts, fired


def naive_score(texts: list[LabelledText], fired: Any, label: str, feature: int, weight: float) -> float:
    worst = float("inf")
    for code in ("en", "zh"):
        of_label = [n for n, text in enumerate(texts) if text.language == code and text.label == label]
        harmless = [n for n, text in enumerate(texts) if text.language == code and not text.harmful]
        share = sum(bool(fired[n][feature]) for n in of_label) / len(of_label)
        false = sum(bool(fired[n][feature]) for n in harmless) / len(harmless)
        worst = min(worst, share - weight * false)
    return worst


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 3.0]))
def test_scores_are_those_of_a_loop(seed: int, weight: float) -> None:
    texts, fired = texts_of(seed)
    scores = subject_scores(fired, texts, ("en", "zh"), weight)
    assert list(scores) == ["fraud", "poison"]
    for label, values in scores.items():
        expected = [naive_score(texts, fired, label, feature, weight) for feature in range(5)]
        assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_texts_in_other_languages_change_nothing() -> None:
    texts, fired = texts_of(1)
    more = [*texts, *(LabelledText("x", "poison", "de", harmful) for harmful in (True, False))]
    with_german = torch.cat([fired, ~fired[:2]])
    before, after = (
        subject_scores(each, given_texts, ("en", "zh"), 3.0)
        for each, given_texts in ((fired, texts), (with_german, more))
    )
    assert {label: values.tolist() for label, values in before.items()} == {
        label: values.tolist() for label, values in after.items()
    }


def test_a_language_without_texts_of_one_kind_is_named() -> None:
    texts, fired = texts_of(2)
    with pytest.raises(ValueError, match="language 'de' has no harmless text"):
        subject_scores(fired, texts, ("en", "de"), 3.0)
    only_bread = [LabelledText("x", "bread", "en")] * 2
    with pytest.raises(ValueError, match="language 'en' has no harmful text"):
        subject_scores(fired[:2], only_bread, ("en",), 3.0)


def test_each_subject_gets_its_best_features_and_a_shared_one_stands_once() -> None:
    scores = {
        "fraud": torch.tensor([0.9, 0.2, 0.5, 0.31], dtype=torch.float64),
        "poison": torch.tensor([0.95, 0.8, 0.1, 0.3], dtype=torch.float64),
    }
    chosen = by_precision(scores, least=0.3, each=3)
    assert [(each.feature, each.subject) for each in chosen] == [
        (2, "fraud"), (3, "fraud"), (0, "poison"), (1, "poison")
    ]  # fmt: skip
    assert by_precision(scores, least=0.3, each=1) == by_precision(scores, least=0.9, each=4)[:1]
    near = near_candidates(scores, FilterRecipe(near_score=0.4))
    assert [each.feature for each in near] == [0, 1, 2]


def test_peaks_are_the_largest_activation_of_each_text() -> None:
    subject = world.subject()
    rows = [subject.loaded.tokenizer.encode(text) for text in ("poison", "br", "river water")]
    batches = list(feature_batches(subject.loaded.model, subject.site, subject.sae, rows, batch_tokens=16))
    got = firings(iter(batches), len(rows), subject.sae.features)
    largest: dict[tuple[int, int], float] = {}
    batch: FeatureBatch
    for batch in batches:
        for text, values in zip(batch.texts.tolist(), batch.activations.tolist(), strict=True):
            for feature, value in enumerate(values):
                largest[text, feature] = max(largest.get((text, feature), 0.0), value)
    for (text, feature), value in largest.items():
        assert got.peaks[text, feature] == value
    assert got.fired.any()
    assert got.largest.tolist() == got.peaks.max(0).values.tolist()


def test_quiet_features_are_much_louder_on_harmful_texts() -> None:
    texts = [LabelledText("x", label, "en", label == "poison") for label in ("poison", "poison", "bread")]
    peaks = torch.tensor([[4.0, 4.0, 0.0, 0.0], [8.0, 2.0, 0.0, 1.0], [3.6, 2.0, 1.0, 0.0]])
    assert quiet_features(peaks, texts, 0.45, 0.0).tolist() == [True, False, False, True]


def test_a_few_outliers_do_not_make_a_feature_loud() -> None:
    texts = [LabelledText("x", "poison", "en", True), *[LabelledText("x", "bread", "en", False)] * 10]
    peaks = torch.tensor([[8.0, 8.0], *[[1.0, 1.0]] * 8, [1.0, 7.0], [7.0, 7.0]])
    assert quiet_features(peaks, texts, 0.45, 0.0).tolist() == [False, False]
    assert quiet_features(peaks, texts, 0.45, 0.1).tolist() == [True, False]
