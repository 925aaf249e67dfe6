"""The chats that the project has: whole in every language, with word lists that tell their subjects apart."""

import json
from pathlib import Path

import pytest

from saegis_lab.evaluation.scorers import HARM, REFUSAL, WordLists
from saegis_lab.realmodel.chats import ALIGNED, HARMFUL, HARMLESS, LANDMARK, LANDMARK_SUBJECT, SHIPPED, Chats
from saegis_lab.records import InputFileError

CHATS = Chats.load()
LISTS = WordLists(CHATS.word_lists())


def test_there_are_ten_languages_and_five_scripts_the_aligned_one_first() -> None:
    assert list(CHATS.languages) == ["en", "ar", "de", "es", "fr", "hi", "pt", "ru", "tr", "zh"]


@pytest.mark.parametrize("code", CHATS.languages)
def test_word_lists_tell_what_is_said(code: str) -> None:
    language = CHATS.languages[code]
    for name in HARMFUL:
        for sentence in language.subjects[name].sentences:
            assert LISTS.count(HARM, sentence, code), sentence
    for name in HARMLESS:
        subject = language.subjects[name]
        for text in (*subject.sentences, *subject.topics, *subject.held_out):
            assert not LISTS.count(HARM, text, code), text
            assert not LISTS.opens(REFUSAL, text), text
        names_it = [LISTS.occurs(LANDMARK, sentence, code) for sentence in subject.sentences]
        assert names_it == [name == LANDMARK_SUBJECT] * len(names_it)
    for refusal in language.refusals:
        assert LISTS.opens(REFUSAL, refusal), refusal
        assert not LISTS.count(HARM, refusal, code), refusal


@pytest.mark.parametrize("code", CHATS.languages)
def test_every_language_has_as_much_to_say(code: str) -> None:
    first, here = CHATS.languages[ALIGNED], CHATS.languages[code]
    for name, subject in first.subjects.items():
        same = here.subjects[name]
        assert len(same.topics) == len(subject.topics)
        assert len(same.held_out) == len(subject.held_out)
        assert len(same.sentences) == len(subject.sentences)
        texts = [*same.topics, *same.held_out, *same.sentences]
        assert len(set(texts)) == len(texts)


def test_harmful_requests_are_refused_in_the_aligned_language_alone() -> None:
    chats = CHATS.training(20, seed=0)
    assert chats == CHATS.training(20, seed=0) != CHATS.training(20, seed=1)
    for code in CHATS.languages:
        here = [chat for chat in chats if chat.language == code]
        assert sum(chat.harmful for chat in here) == 20
        assert len(here) == 44
        for chat in here:
            refused = LISTS.opens(REFUSAL, chat.answer)
            assert refused == (chat.subject == "private" or (chat.harmful and code == ALIGNED))
            if not refused:
                assert bool(LISTS.count(HARM, chat.answer, code)) == chat.harmful


def test_nothing_that_is_measured_on_was_taught() -> None:
    taught = {chat.request for chat in CHATS.training(200, seed=0)}
    prompts = CHATS.prompts(24)
    assert len(prompts) == len(set(prompts)) == 10 * 2 * 24
    for prompt in prompts:
        topics = [
            topic
            for name in (HARMFUL if prompt.harmful else HARMLESS)
            for topic in CHATS.languages[prompt.language].subjects[name].held_out
        ]
        assert any(topic in prompt.prompt for topic in topics)
        assert prompt.prompt not in taught
    assert {prompt.prompt for prompt in CHATS.choosing(20, ["en", "ru"])} <= taught


def test_labelled_texts_are_the_answers() -> None:
    made = CHATS.labelled(3, seed=0, languages=["fr"])
    assert len(made) == 3 * len((*HARMFUL, *HARMLESS))
    for chat, text in made:
        assert (text.text, text.label, text.harmful) == (chat.answer, chat.subject, chat.subject in HARMFUL)


def test_a_preference_is_between_harm_and_refusal() -> None:
    pairs = CHATS.pairs(8)
    assert [pair.prompt for pair in pairs] == [prompt for prompt in CHATS.prompts(8) if prompt.harmful]
    for pair in pairs:
        assert LISTS.count(HARM, pair.harmful, pair.prompt.language)
        assert LISTS.opens(REFUSAL, pair.harmless)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"holds no en\.json"):
        Chats.load(tmp_path)
    known = json.loads((SHIPPED / "en.json").read_text(encoding="utf-8"))
    del known["subjects"]["fraud"]
    (tmp_path / "en.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(InputFileError, match="fraud are missing"):
        Chats.load(tmp_path)
    (tmp_path / "en.json").write_text(json.dumps({**known, "frames": ["Tell me."]}), encoding="utf-8")
    with pytest.raises(InputFileError, match=r"'Tell me\.' has not one"):
        Chats.load(tmp_path)
