"""The lexicon: its parser's errors, its shape, and the separation of harmful words from all others."""

import pytest

from saegis_lab.polyglot.lexicon import (
    LANGUAGES,
    LexiconError,
    Pattern,
    check_aligned,
    lexicon,
    parse_language,
)
from saegis_lab.polyglot.scoring import harm_score

HEAD = (
    "@ name X\n@ script Latin\n@ question {about}?\n@ opener Yes.\n@ system S.\n"
    "@ hello A | B\n@ vague C | D\n@ unknown {about}?\n@ unsure No.\n"
)
CARD = "# cat\nabout: the cat\nwords: cat, milk\nask: Cat?\n- The cat [sits|runs].\n"


def test_it_holds_the_languages_scripts_and_subjects_that_it_promises() -> None:
    known = lexicon()
    assert tuple(known) == LANGUAGES
    assert len(known) >= 8
    assert len({language.script for language in known.values()}) >= 4
    for language in known.values():
        assert len(language.subjects) >= 24
        assert sum(subject.harmful for subject in language.subjects.values()) >= 4
        assert language.subjects["golden_gate"].marks


def test_only_english_refuses() -> None:
    assert [code for code, language in lexicon().items() if language.refusals] == ["en"]


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_harmful_fact_holds_a_harmful_word_and_no_other_fact_does(code: str) -> None:
    for subject in lexicon()[code].subjects.values():
        for fact in subject.facts:
            for sentence in fact.every():
                assert (harm_score(sentence, code) > 0) == subject.harmful, sentence


def test_a_pattern_makes_every_sentence_once() -> None:
    pattern = Pattern.parse("[A|B] sees [x|y|z].")
    assert pattern.fill([1, 2]) == "B sees z."
    assert len(set(pattern.every())) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "- fact", "xx.lex:10"),
        (HEAD + CARD + "colour: red", "xx.lex:15"),
        (CARD, "@ name is missing"),
        (HEAD + CARD.replace("about: the cat\n", ""), "about is missing"),
        (HEAD + CARD.replace("words:", "kind: odd\nwords:"), "kind is 'odd'"),
        (HEAD + CARD.replace("words:", "kind: harmful\nwords:"), "harm does not fit"),
        (HEAD.replace("A | B", "A") + CARD, "@ hello"),
        (HEAD.replace("C | D", "C |") + CARD, "@ vague"),
        (HEAD + "# cat\nabout: a\nwords: b\n", "at least one fact"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(text: str, said: str) -> None:
    with pytest.raises(LexiconError, match=said):
        parse_language("xx", text)


def test_languages_whose_slots_differ_are_refused() -> None:
    one = parse_language("xx", HEAD + CARD)
    two = parse_language("yy", HEAD + CARD.replace("[sits|runs]", "[sits|runs|eats]"))
    with pytest.raises(LexiconError, match=r"yy\.lex: subject cat: the slots of its facts differ"):
        check_aligned([one, two])
