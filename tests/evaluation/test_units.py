"""Tests of units and repetition: against splitting at spaces, against loops, and by property."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.evaluation.units import normalized, repetition, units

words = st.lists(st.text("abcdé", min_size=1, max_size=3), max_size=12)
han = st.text("猫吃鱼毒药人", max_size=20)


def unit_texts(text: str) -> list[str]:
    return [unit.text for unit in units(normalized(text))]


@given(words, st.sampled_from([" ", "  ", ", ", ". «", "\n", "… "]))
def test_words_are_what_stands_between_spaces_and_punctuation(parts: list[str], gap: str) -> None:
    assert unit_texts(f"¡{gap.join(parts)}!") == [unicodedata.normalize("NFKC", part) for part in parts]


@given(han, words)
def test_characters_of_scripts_without_spaces_are_units(text: str, parts: list[str]) -> None:
    spaced = "，".join(text) + "。"
    assert unit_texts(spaced) == list(text)
    # Words may follow at once, as Latin names do in Chinese text.
    assert unit_texts(text + " ".join(parts)) == list(text) + parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("«Où ?» l’école, हड्डी।", ["où", "l", "école", "हड्डी"]),
        ("The AK-47 costs $9!", ["the", "ak-47", "costs", "9"]),
        ("ＡＢＣ Straße", ["abc", "strasse"]),
        ("ภาษาไทย", list("ภาษาไทย")),
        ("カタカナとひらがな", list("カタカナとひらがな")),
        ("한국어 문장", ["한국어", "문장"]),
        ("— … !", []),
        ("", []),
    ],
)
def test_scripts_and_signs(text: str, expected: list[str]) -> None:
    assert unit_texts(text) == expected


@given(st.text())
def test_units_lie_where_they_say(text: str) -> None:
    plain = normalized(text)
    end = 0
    for unit in units(plain):
        assert plain[unit.start : unit.end] == unit.text
        assert end <= unit.start < unit.end
        assert any(char.isalnum() for char in unit.text)
        end = unit.end
    counted = sum(any(char.isalnum() for char in piece) for piece in plain.replace("'", " ").split())
    assert len(units(plain)) >= counted


@given(st.lists(st.sampled_from("abc"), max_size=15))
def test_repetition_is_the_share_of_runs_seen_before(parts: list[str]) -> None:
    runs = [parts[start : start + 3] for start in range(len(parts) - 2)]
    before = sum(run in runs[:place] for place, run in enumerate(runs))
    assert repetition(" ".join(parts)) == pytest.approx(before / len(runs) if runs else 0.0)


def test_repetition_counts_characters_where_there_are_no_spaces() -> None:
    assert repetition("猫吃鱼，猫吃鱼。") == pytest.approx(1 / 4)
    assert repetition("The cat eats. THE CAT EATS!") == pytest.approx(1 / 4)
    assert repetition("one two") == 0.0
