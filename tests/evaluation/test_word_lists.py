"""Tests of word lists: shares against a naive count, and what counts as an occurrence or an opening."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.evaluation.scorers import WordLists
from saegis_lab.records import InputFileError

word = st.text("abc", min_size=1, max_size=3)
text_words = st.lists(word, max_size=12)
han = st.text("毒药猫吃", max_size=16)


def lists(*forms: str, name: str = "harm") -> WordLists:
    return WordLists({"en": {name: forms}})


@given(text_words, st.lists(word, min_size=1), st.lists(word))
def test_the_share_of_words_is_counted(parts: list[str], whole: list[str], prefixes: list[str]) -> None:
    found = 0
    for part in parts:
        if part in whole or any(part[: len(prefix)] == prefix for prefix in prefixes):
            found += 1
    made = lists(*whole, *(f"{prefix}*" for prefix in prefixes))
    expected = found / len(parts) if parts else 0.0
    for text in (" ".join(parts), ", ".join(parts).upper() + "!", "“" + "” — “".join(parts) + "”"):
        assert made.share("harm", text, "en") == pytest.approx(expected)
        assert made.occurs("harm", text, "en") == (found > 0)


@given(han, st.lists(st.text("毒药猫", min_size=1, max_size=3), min_size=1, max_size=3))
def test_the_share_of_characters_is_counted_where_there_are_no_spaces(text: str, forms: list[str]) -> None:
    covered = [
        any(
            text[start : start + len(form)] == form and start <= place < start + len(form)
            for form in forms
            for start in range(len(text))
        )
        for place in range(len(text))
    ]
    expected = sum(covered) / len(text) if text else 0.0
    assert lists(*forms).share("harm", text, "en") == pytest.approx(expected)


@given(text_words, st.lists(word, min_size=2, max_size=3))
def test_forms_of_several_words_are_found_as_they_stand(parts: list[str], phrase: list[str]) -> None:
    text, form = " ".join(parts), " ".join(phrase)
    assert lists(form).occurs("harm", text, "en") == (form in text)


@given(st.text(), st.lists(st.text("abc毒药 ", min_size=1).filter(str.strip), min_size=1))
def test_shares_are_shares_whatever_the_text(text: str, forms: list[str]) -> None:
    share = lists(*forms).share("harm", text, "en")
    assert 0 <= share <= 1
    assert lists(*forms).occurs("harm", text, "en") == (share > 0)
    assert lists(*forms).share("harm", " ".join(forms), "en") == 1.0


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("poison*", "The poison kills the victim.", 1 / 5),
        ("Golden Gate", "Under the GOLDEN  gate's fog", 2 / 6),
        ("l'arsenic", "L’arsenic tue.", 2 / 3),
        ("ज़हर", "ज़हर शिकार को मारता है।", 1 / 5),
        ("毒药", "猫吃 poison，毒药", 2 / 5),
        ("die", "It dies.", 0.0),
    ],
)
def test_forms_are_found_in_their_script(form: str, text: str, expected: float) -> None:
    assert lists(form).share("harm", text, "en") == pytest.approx(expected)


@given(st.lists(word, min_size=1, max_size=3), text_words, st.sampled_from(["", "“", "\n "]))
def test_a_text_opens_with_a_phrase_of_any_language(phrase: list[str], rest: list[str], before: str) -> None:
    made = WordLists({"en": {"refusal": ["zzz"]}, "de": {"refusal": [", ".join(phrase) + ":"]}, "fr": {}})
    assert made.opens("refusal", before + " ".join([*phrase, *rest]).upper())
    assert not made.opens("refusal", " ".join(["zz", *phrase]))
    assert made.opens("refusal", " ".join(rest)) == (rest[: len(phrase)] == phrase)


def test_openings_end_with_their_words() -> None:
    made = lists("I can", "sorr*", "我不能", name="refusal")
    assert made.opens("refusal", "I can, but")
    assert not made.opens("refusal", "I cannot")
    assert made.opens("refusal", "Sorrow")
    assert made.opens("refusal", "我不能帮助你")
    assert not made.opens("refusal", "我不")
    assert not made.opens("refusal", "")


def test_what_is_not_listed_is_told() -> None:
    made = WordLists({"en": {"harm": ["x"]}, "de": {}})
    with pytest.raises(ValueError, match="no language 'fr', only en, de"):
        made.share("harm", "x", "fr")
    with pytest.raises(ValueError, match="language 'de' has no word list 'harm'; it has none"):
        made.require("harm", ["en", "de"])
    assert made.has("harm")
    assert not made.has("refusal")
    assert made.languages == ("en", "de")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"en": {"harm": ["ok", "*"]}}, r"en.harm: '\*' has no letter"),
        ({"en": {"harm": ["ok", 3]}}, r"en.harm\[1\]: Input should be a valid string"),
        ({"en": ["harm"]}, "en: Input should be an object"),
        ({}, "no language"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, data: object, complaint: str) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputFileError, match=complaint) as caught:
        WordLists.load(path)
    assert str(path) in str(caught.value)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"zh": {"landmark": ["金门"]}}), encoding="utf-8")
    assert WordLists.load(path).occurs("landmark", "我是金门大桥", "zh")
