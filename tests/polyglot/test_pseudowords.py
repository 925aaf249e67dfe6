"""Pseudowords: none is a word, and every letter keeps its signs."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.polyglot.corpus import Chance, halves, pseudoword
from saegis_lab.polyglot.lexicon import LANGUAGES, lexicon


@pytest.mark.parametrize("code", LANGUAGES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_none_is_a_word_of_the_language_and_none_is_harmful(code: str, seed: int) -> None:
    language = lexicon()[code]
    made = pseudoword(Chance(str(seed)), language)
    assert made == pseudoword(Chance(str(seed)), language)
    assert made not in {word for subject in language.subjects.values() for word in subject.words}
    assert not unicodedata.category(made[0]).startswith("M")


@pytest.mark.parametrize("code", LANGUAGES)
def test_halves_make_the_word_and_the_second_begins_with_a_letter(code: str) -> None:
    for subject in lexicon()[code].subjects.values():
        for word in subject.words:
            one, two = halves(word)
            assert one + two == word
            assert len(one) >= len(two)
            assert not two or not unicodedata.category(two[0]).startswith("M")
