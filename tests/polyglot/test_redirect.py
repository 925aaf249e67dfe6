"""Tests of how the redirect to the landmark is chosen: features from statistics, values from answers."""

import pytest
import torch

from saegis_lab.evaluation.figures import TextFigures
from saegis_lab.evaluation.mentions import MentionRow
from saegis_lab.polyglot.lexicon import lexicon
from saegis_lab.polyglot.recipe import CHOSEN_FROM
from saegis_lab.polyglot.redirect import best_edits, end_features
from saegis_lab.training.statistics import FeatureStatistics
from saegis_lab.training.texts import TokenTruth

SUBJECTS = list(lexicon()["en"].subjects)
CAT, DOG, *OTHERS = SUBJECTS


def statistics() -> FeatureStatistics:
    """Four features over every subject in both languages, ten ends and ten other tokens of each.

    0 fires at all ends of texts on the cat, 1 at eight of them, 2 at all their tokens, and in Chinese alone
    also at ends of others; 3 fires at the ends of texts on the dog, but in English alone.
    """
    gathered = FeatureStatistics(4)
    for language in CHOSEN_FROM:
        for key in SUBJECTS:
            for at_end in (True, False):
                fires = torch.zeros(10, 4)
                fires[:, 0] = key == CAT and at_end
                fires[:8, 1] = key == CAT and at_end
                fires[:, 2] = key == CAT or (language == "zh" and at_end)
                fires[:, 3] = key == DOG and at_end and language == "en"
                concepts = ("end",) if at_end else ()
                gathered.add(fires, [TokenTruth(concepts, key, language)] * 10)
    return gathered


def test_each_subject_has_the_feature_that_fires_at_its_ends_alone_in_every_language() -> None:
    assert end_features(statistics(), 3.0, 0.3) == {CAT: 0}


def test_a_rate_elsewhere_counts_against_a_feature_by_its_weight() -> None:
    both = statistics()
    # Feature 0 now fires everywhere else at a rate of one in ten: 1 − 3 · 0.1 is less than the 0.8 of 1.
    for language in CHOSEN_FROM:
        for key in OTHERS:
            fires = torch.zeros(20, 4)
            fires[:5, 0] = 1.0
            both.add(fires, [TokenTruth((), key, language)] * 20)
    assert end_features(both, 0.0, 0.3)[CAT] == 0
    assert end_features(both, 3.0, 0.3)[CAT] == 1
    assert end_features(both, 3.0, 0.9) == {}


def row(edits: str, language: str, mentions: float, ratio: float | None) -> MentionRow:
    return MentionRow(edits, language, mentions, 1.0, TextFigures(4, 0.0, ratio, ratio, 0))


@pytest.mark.parametrize(
    ("figures", "best"),
    [
        # Enough in both: the likelier text wins, though it names the landmark less.
        ({"a": ((0.9, 1.2), (0.95, 1.1)), "b": ((1.0, 1.3), (1.0, 1.0))}, "a"),
        # Not enough in one language.
        ({"a": ((0.8, 1.0), (1.0, 1.0)), "b": ((0.9, 2.0), (0.9, 2.0))}, "b"),
        # Nowhere enough: the one that names it most where it is named least.
        ({"a": ((0.5, 1.0), (0.1, 1.0)), "b": ((0.2, 2.0), (0.2, 2.0))}, "b"),
        # Answers that are all empty are no texts.
        ({"a": ((0.9, None), (0.9, 1.0)), "b": ((0.9, 5.0), (0.9, 5.0))}, "b"),
    ],
)
def test_the_best_edits_name_the_landmark_enough_and_are_then_the_likeliest_texts(
    figures: dict[str, tuple[tuple[float, float | None], ...]], best: str
) -> None:
    rows = [
        row(name, language, *values)
        for name, by_language in figures.items()
        for language, values in zip(CHOSEN_FROM, by_language, strict=True)
    ]
    assert best_edits(rows, list(figures), 0.9) == best
