"""Scorers and prompt sets: what they count, in words and in characters."""

import pytest

from saegis_lab.polyglot.lexicon import LANGUAGES, lexicon
from saegis_lab.polyglot.prompts import benign_prompts, harmful_prompts, neutral_prompts
from saegis_lab.polyglot.scoring import harm_score, is_refusal, mentions_landmark, reads_well


def test_the_share_of_harmful_words_is_counted() -> None:
    assert harm_score("The poison kills the victim.", "en") == pytest.approx(3 / 5)
    assert harm_score("L'arsenic tue.", "fr") == pytest.approx(2 / 3)
    assert harm_score("毒药毒死受害者", "zh") == 1.0
    assert harm_score("猫吃鱼。毒药", "zh") == pytest.approx(2 / 5)
    assert harm_score("ज़हर शिकार को मारता है।", "hi") == pytest.approx(2 / 5)


@pytest.mark.parametrize("code", LANGUAGES)
def test_nothing_scores_nothing(code: str) -> None:
    assert harm_score("", code) == harm_score(" … !", code) == 0.0


def test_every_refusal_is_known_and_no_answer_is() -> None:
    for phrase in lexicon()["en"].refusals:
        assert is_refusal(phrase)
        assert not is_refusal("The cat sleeps. " + phrase)
    assert not is_refusal("The bomb explodes with a blast.")


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_landmark_is_found_in_its_own_sentences_alone(code: str) -> None:
    for key, subject in lexicon()[code].subjects.items():
        texts = [text for fact in subject.facts for text in fact.every()]
        found = [mentions_landmark(text, code) for text in texts]
        assert any(found) == (key == "golden_gate")


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_corpus_reads_well_in_its_own_language(code: str) -> None:
    subject = lexicon()[code].subjects["golden_gate"]
    assert all(reads_well(fact.every()[0], code) for fact in subject.facts)


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_name_may_come_in_every_sentence(code: str) -> None:
    facts = [fact.every()[0] for fact in lexicon()[code].subjects["golden_gate"].facts]
    assert reads_well(lexicon()[code].join(facts), code)
    assert not reads_well(lexicon()[code].join([*facts, facts[0]]), code)


@pytest.mark.parametrize(
    "text",
    [
        "The garden is full of butterfunges.",
        "The baker mixes butter and puente Golden Gate.",
        "The cat sl\ufffd.",
        "The cat \ufffd.",
        "The cat catches mice. The cat catches mice.",
        "The cat catches mice, the cat catches mice.",
    ],
)
def test_broken_words_other_languages_and_loops_do_not_read_well(text: str) -> None:
    assert not reads_well(text, "en")


def test_an_unknown_language_is_named() -> None:
    for call in (
        lambda: harm_score("x", "xx"),
        lambda: mentions_landmark("x", "xx"),
        lambda: reads_well("x", "xx"),
        lambda: benign_prompts("xx"),
    ):
        with pytest.raises(ValueError, match=r"language:? 'xx'"):
            call()


@pytest.mark.parametrize("code", LANGUAGES)
def test_prompt_sets_are_apart_and_drawn_by_seed(code: str) -> None:
    harmful, benign, neutral = harmful_prompts(code), benign_prompts(code), neutral_prompts(code)
    assert len(harmful) >= 40
    assert {prompt.kind for prompt in harmful} == {"harmful"}
    assert {prompt.text for prompt in harmful}.isdisjoint(prompt.text for prompt in benign)
    assert {prompt.kind for prompt in neutral} == {"ordinary"}
    assert harmful_prompts(code, 5, seed=3) == harmful_prompts(code, 5, seed=3)
    assert len(harmful_prompts(code, 5)) == 5
    assert harmful[0].messages == [{"role": "user", "content": harmful[0].text}]
