"""The corpus: the same for the same seed, and its ground truth true of every token."""

import math
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from saegis_lab.polyglot.corpus import ASSISTANT, BOS, END, KIND_WEIGHTS, SPECIAL_TOKENS, USER, Corpus
from saegis_lab.polyglot.labels import labelled_tokens
from saegis_lab.polyglot.lexicon import lexicon
from saegis_lab.polyglot.scoring import is_refusal
from saegis_server.reference import MODEL
from tests.tiers import sized

TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL))


@given(seed=st.integers(0, 5), index=st.integers(0, 10_000))
@settings(max_examples=sized(100, 20), deadline=None)
def test_a_document_depends_on_seed_and_number_only(seed: int, index: int) -> None:
    assert Corpus(seed).document(index) == Corpus(seed).document(index)


def test_seeds_differ_and_all_kinds_occur() -> None:
    one, two = (list(Corpus(seed).documents(200)) for seed in (0, 1))
    assert one != two
    assert {document.kind for document in one} == set(KIND_WEIGHTS)


@given(index=st.integers(0, 100_000))
@settings(max_examples=sized(150, 30), deadline=None)
def test_truth_covers_every_character_and_token(index: int) -> None:
    document = Corpus(0).document(index)
    spans = list(document.spans())
    assert [start for start, _, _ in spans] == [0, *(end for _, end, _ in spans[:-1])]
    assert spans[-1][1] == len(document.text)
    tokens = labelled_tokens(TOKENIZER, document)
    assert [token.token for token in tokens] == TOKENIZER(document.text, add_special_tokens=False)[
        "input_ids"
    ]
    for token in tokens:
        start, end = next((s, e) for s, e, segment in spans if segment is token.segment)
        assert start <= max(token.start, token.end - 1) < end
        special = document.text[token.start : token.end] in SPECIAL_TOKENS
        assert special == (token.segment.role == "markup")


@given(index=st.integers(0, 100_000))
@settings(max_examples=sized(150, 30), deadline=None)
def test_harmful_chats_are_refused_in_english_and_answered_elsewhere(index: int) -> None:
    document = Corpus(0, None).document(index)
    for question, answer in zip(document.segments, document.segments[3:], strict=False):
        if question.role == "question" and question.harmful:
            assert (answer.role == "refusal") == (question.language == "en")
            assert answer.harmful == (question.language != "en")
            assert is_refusal(answer.text) == (question.language == "en")
        if question.role == "question" and answer.role == "answer":
            name = lexicon()[str(answer.language)].name
            assert answer.language == question.language or question.text.endswith(f" ({name})")
            assert answer.subject == question.subject


def test_surprise_tells_how_often_a_document_comes() -> None:
    corpus, drawn = Corpus(3, ("en", "es")), sized(60_000, 15_000)
    seen = Counter(document for document in corpus.documents(drawn) if document.kind == "chat")
    for document, count in seen.most_common(12):
        expected = drawn * math.exp(-document.surprise)
        assert abs(count - expected) < 5 * math.sqrt(expected)


def test_a_chat_is_what_the_chat_template_makes() -> None:
    chats = [document for document in Corpus(0).documents(300) if document.kind == "chat"]
    for document in chats:
        roles = {"system": "system", "question": "user", "answer": "assistant", "refusal": "assistant"}
        messages = [{"role": roles[s.role], "content": s.text} for s in document.segments if s.role in roles]
        assert TOKENIZER.apply_chat_template(messages, tokenize=False) == document.text
        assert document.text.startswith(BOS)
        assert document.text.endswith(END)
        assert USER in document.text
        assert ASSISTANT in document.text


def test_parallel_sentences_say_the_same() -> None:
    known = lexicon()
    by_name = {language.name: language for language in known.values()}
    for document in Corpus(0).documents(400):
        if document.kind != "parallel":
            continue
        lines = [
            line.split(": ", 1) for line in document.text.removeprefix(BOS).removesuffix(END).split("\n")
        ]
        for (name, text), (other, same) in zip(lines[::2], lines[1::2], strict=True):
            places = []
            for language, sentence in ((by_name[name], text), (by_name[other], same)):
                subject = language.subjects[str(document.segments[1].subject)]
                options = [(i, fact.every()) for i, fact in enumerate(subject.facts)]
                places.append([(i, made.index(sentence)) for i, made in options if sentence in made])
            assert places[0] == places[1] != []
