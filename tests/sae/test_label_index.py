"""The index of labels: every word is found in any script, and the order is that of a plain loop."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.sae.label_index import LabelIndex, words_of
from saegis_server.sae.labels import FeatureLabel
from tests.tiers import sized

BRIDGE = FeatureLabel(
    7, "Golden Gate Bridge", ("landmark", "bridge"), ("en", "es"), 0.9, {"en": 0.8, "es": 0.7}, 31.5, 0.01
)
POISON = FeatureLabel(3, "Poison (harmful)", ("poison",), ("en", "fr"), 0.95, {"en": 0.9}, harmful=True)
FRENCH = FeatureLabel(1, "Français", languages=("French",))
HINDI = FeatureLabel(12, "पुल की कहानी", ("bridge",), ("Hindi",))
CHINESE = FeatureLabel(20, "金门大桥", ("landmark",), ("Chinese",))
LABELS = (BRIDGE, POISON, FRENCH, HINDI, CHINESE)


def found(labels: tuple[FeatureLabel, ...], query: str) -> list[int]:
    return [labels[place].feature for place in LabelIndex(labels).find(query).places.tolist()]


@pytest.mark.parametrize(
    ("query", "features"),
    [
        ("bridge", [7, 12]),
        ("BRIDGE golden", [7]),
        ("golden-gate", [7]),
        ("poison", [3]),
        ("francais", [1]),
        ("français!", [1]),
        ("french", [1]),
        ("hindi", [12]),
        ("कहानी", [12]),
        ("大桥", [20]),
        ("fr", [1, 3]),
        ("nothing", []),
        ("bridge nothing", []),
        ("", []),
        ("!?", []),
    ],
)
def test_every_word_is_found_in_any_script(query: str, features: list[int]) -> None:
    assert found(LABELS, query) == features


SEVERAL = (
    FeatureLabel(1, "the fog horn", ("fog", "horn"), precision=1.0),
    FeatureLabel(2, "fogs", precision=1.0),
    FeatureLabel(3, "fog in the morning", precision=0.2),
    FeatureLabel(4, "Fog", precision=0.5),
    FeatureLabel(5, "befogged", precision=1.0),
    FeatureLabel(6, "fog"),
    FeatureLabel(7, "Fóg", precision=0.9),
    FeatureLabel(8, "fog", precision=1.0, recall={"en": 0.1}),
    FeatureLabel(9, "fog", precision=0.8, recall={"en": 0.8, "fr": 0.6}),
    FeatureLabel(10, "a fog horn", precision=1.0),
)


@pytest.mark.parametrize("query", ["fog", " FOG "])
def test_the_label_itself_comes_first_then_its_beginning_and_of_equals_the_best_fitting(query: str) -> None:
    """Spelled like it: 9 (fit 0.75), 4 (0.5), 8 (0.18), 6; with an accent 7; begun by it 3, 2; then the rest,
    of which 10 is shorter than 1, and 5 has it inside."""
    assert found(SEVERAL, query) == [9, 4, 8, 6, 7, 3, 2, 10, 1, 5]


def test_a_score_is_the_mean_over_words_of_place_times_fit() -> None:
    matches = LabelIndex(LABELS).find("gold landmark en")
    assert matches.places.tolist() == [0]
    assert matches.scores.tolist() == [pytest.approx((0.6 + 0.8 + 0.6) / 3)]


_WORDS = st.sampled_from(["fog", "fogs", "befog", "rain", "ra", "fogFog", "Fóg", "in", "霧", "霧雨", "a-b"])
_TEXTS = st.lists(_WORDS, min_size=1, max_size=3).map(" ".join)
_LABELS = st.lists(
    st.builds(
        FeatureLabel,
        feature=st.just(0),
        label=_TEXTS,
        subjects=st.lists(_WORDS, max_size=2).map(tuple),
        languages=st.lists(_WORDS, max_size=1).map(tuple),
        precision=st.none() | st.sampled_from([0.25, 0.5]),
        recall=st.dictionaries(st.just("en"), st.just(0.5)),
    ),
    max_size=12,
).map(tuple)


def naive(labels: tuple[FeatureLabel, ...], query: str) -> list[int]:
    """The places that a plain loop over all labels finds, best first."""
    ranked = []
    for place, label in enumerate(labels):
        fields = ((1.0, label.label), (0.8, " ".join(label.subjects)), (0.6, " ".join(label.languages)))

        def worth(word: str, fields: tuple[tuple[float, str], ...] = fields) -> float:
            fits = [0.0]
            for weight, text in fields:
                for other in words_of(text):
                    fits += [weight * 1.0] if other == word else []
                    fits += [weight * 0.6] if other.startswith(word) else []
                    fits += [weight * 0.3] if word in other else []
            return max(fits)

        words = sorted(set(words_of(query)))
        worths = [worth(word) for word in words]
        if not words or min(worths) == 0.0:
            continue
        text, asked = " ".join(words_of(label.label)), " ".join(words_of(query))
        tier = 2 if text.startswith(asked) else 3
        if text == asked:
            tier = 0 if label.label.casefold() == query.strip().casefold() else 1
        score = sum(worths) / len(words)
        ranked.append((tier, -round(score, 9), -label.fit, len(text), place))
    return [key[-1] for key in sorted(ranked)]


@settings(deadline=None, max_examples=sized(400, 60))
@given(labels=_LABELS, query=_TEXTS)
def test_the_order_is_that_of_a_plain_loop(labels: tuple[FeatureLabel, ...], query: str) -> None:
    assert LabelIndex(labels).find(query).places.tolist() == naive(labels, query)


@settings(deadline=None)
@given(query=st.text(max_size=20))
def test_any_query_is_answered(query: str) -> None:
    matches = LabelIndex(LABELS).find(query)
    assert len(set(matches.places.tolist())) == len(matches)
    assert all(0.0 < score <= 1.0 for score in matches.scores.tolist())


@given(text=st.text(st.characters(codec="ascii"), max_size=30))
def test_words_of_ascii_are_those_of_all_scripts(text: str) -> None:
    """A letter behind it that is no ASCII takes the general way."""
    assert words_of(text) == words_of(text + " ß")[:-1]
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text.casefold())
    assert words_of(text) == tuple(kept.split())
