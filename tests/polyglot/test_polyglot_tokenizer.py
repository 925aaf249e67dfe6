"""The tokenizer: it loads as any other, loses nothing, and its chat template says what it should."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from saegis_lab.polyglot.corpus import SPECIAL_TOKENS
from saegis_lab.polyglot.lexicon import lexicon
from saegis_server.reference import MODEL

TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL))


def test_every_language_goes_round() -> None:
    for language in lexicon().values():
        for subject in language.subjects.values():
            for pattern in subject.facts + subject.asks:
                for text in pattern.every():
                    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
                    assert TOKENIZER.decode(ids) == text


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_goes_round(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_plain_text_begins_with_bos_and_special_tokens_are_single() -> None:
    assert TOKENIZER("fog")["input_ids"][0] == TOKENIZER.bos_token_id
    for token in SPECIAL_TOKENS:
        assert len(TOKENIZER(token, add_special_tokens=False)["input_ids"]) == 1
    assert 2048 <= len(TOKENIZER) <= 4096


def test_the_chat_template_opens_the_answer_and_refuses_unknown_roles() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|bos|><|system|>S<|end|><|user|>U<|end|><|assistant|>"
    with pytest.raises(TemplateError, match="not tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
