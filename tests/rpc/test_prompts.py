"""Prompts are read as Transformers' tokenizer reads them, and refused with their field."""

import pytest

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import prompt_pb2
from saegis_lab.polyglot.tokenizer import train_tokenizer
from saegis_server.engine.api import FieldError
from saegis_server.rpc.wire.problems import ContextLengthError, PreconditionError
from saegis_server.rpc.wire.prompts import PromptReader, check_length
from tests.rpc import tiny

READER = PromptReader(tiny.tokenizer(), tiny.VOCABULARY)


def read(request: pb.GenerateRequest, opens_turn: bool = True) -> tuple[int, ...]:
    return READER.read(request, request.WhichOneof("prompt"), opens_turn)


def chat(*turns: tuple[str, str]) -> pb.GenerateRequest:
    messages = [prompt_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return pb.GenerateRequest(chat=prompt_pb2.Chat(messages=messages))


def test_text_gets_the_tokenizers_own_special_tokens() -> None:
    tokens = read(pb.GenerateRequest(text=tiny.TEXT))
    assert tokens == tuple(tiny.tokenizer()(tiny.TEXT)["input_ids"])
    assert tokens[0] == tiny.tokenizer().bos_token_id
    assert READER.text(tiny.TEXT, add_special_tokens=False) == tokens[1:]


def test_token_ids_are_taken_as_they_are() -> None:
    assert read(pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=[5, 299, 0]))) == (5, 299, 0)


@pytest.mark.parametrize("opens_turn", [True, False])
def test_a_conversation_is_rendered_with_the_models_template(opens_turn: bool) -> None:
    turns = [{"role": "user", "content": "the river"}, {"role": "assistant", "content": "is long"}]
    expected = tiny.tokenizer().apply_chat_template(
        turns, add_generation_prompt=opens_turn, tokenize=True, return_dict=False
    )
    found = read(chat(("user", "the river"), ("assistant", "is long")), opens_turn)
    assert list(found) == expected


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (pb.GenerateRequest(), "text", "must be given"),
        (pb.GenerateRequest(token_ids=prompt_pb2.TokenIds()), "token_ids", "at least one token"),
        (
            pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=[1, 300])),
            "token_ids.ids[1]",
            "0 to 299, not 300",
        ),
        (chat(), "chat.messages", "at least one message"),
        (chat(("user", "x"), ("", "x")), "chat.messages[1].role", "must be one of assistant"),
        (chat(("pirate", "x")), "chat.messages[0].role", "system, tool, user"),
        (chat(("tool", "x")), "chat.messages", "must be system, user or assistant, not tool"),
    ],
)
def test_what_cannot_be_read(request_: pb.GenerateRequest, field: str, words: str) -> None:
    with pytest.raises(FieldError) as caught:
        read(request_)
    assert caught.value.field == field
    assert words in caught.value.description


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[0].content | int // 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content.nothing() }}", "has no attribute"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for message in messages %}", "Unexpected end of template"),
    ],
)
def test_a_template_that_fails_in_any_way_is_named(template: str, told: str) -> None:
    tokenizer = train_tokenizer([tiny.TEXT] * 4, tiny.VOCABULARY, tiny.CONTEXT)
    tokenizer.chat_template = template
    reader = PromptReader(tokenizer, tiny.VOCABULARY)
    request = chat(("user", "the river"))
    with pytest.raises(FieldError, match=f"the model's chat template refuses it: .*{told}") as caught:
        reader.read(request, "chat", opens_turn=True)
    assert caught.value.field == "chat.messages"


def test_without_a_chat_template_conversations_are_refused() -> None:
    tokenizer = train_tokenizer([tiny.TEXT], tiny.VOCABULARY)
    tokenizer.chat_template = None
    reader = PromptReader(tokenizer, tiny.VOCABULARY)
    request = chat(("user", "x"))
    assert not reader.has_chat_template
    with pytest.raises(PreconditionError) as caught:
        reader.read(request, "chat", True)
    assert caught.value.kind == "NO_CHAT_TEMPLATE"


def test_an_empty_text_of_a_tokenizer_without_bos() -> None:
    class Silent(PromptReader):
        def text(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
            return super().text(text, add_special_tokens=False)

    reader = Silent(tiny.tokenizer(), tiny.VOCABULARY)
    with pytest.raises(FieldError, match="at least one token"):
        reader.read(pb.GenerateRequest(text=""), "text", True)


def test_the_context_must_have_room() -> None:
    check_length([1] * 9, "text", 10, completion=1)
    with pytest.raises(ContextLengthError, match=r"text: 10 tokens; .* at most 10"):
        check_length([1] * 10, "text", 10, completion=1)


def test_decoding() -> None:
    tokens = READER.text("the river")
    assert READER.decode(tokens, skip_special_tokens=True) == "the river"
    assert READER.decode(tokens, skip_special_tokens=False).endswith("the river")
    with pytest.raises(FieldError, match=r"token_ids\[1\]"):
        READER.decode([1, 300], skip_special_tokens=True)
    assert "".join(READER.pieces(READER.text("the river", add_special_tokens=False))) == "the river"
    assert all("�" in piece for piece in READER.pieces(READER.text("Ж", add_special_tokens=False)))


def test_what_a_caller_writes_of_the_answer_is_told_apart() -> None:
    """The last message where it is the assistant's; in text and token ids, what follows the opening."""

    def given(request: pb.GenerateRequest) -> str:
        kind, tokens = request.WhichOneof("prompt"), read(request)
        return READER.decode(tokens[len(tokens) - READER.prefilled(request, kind, tokens) :], False)

    assert given(chat(("user", "the river"))) == ""
    assert given(chat(("user", "the river"), ("assistant", "is long"), ("user", "why?"))) == ""
    begun = given(chat(("user", "the river"), ("assistant", "is long"), ("assistant", "is red")))
    assert begun == "is red<|end|><|assistant|>"
    assert given(chat(("assistant", "is long"))) == "<|assistant|>is long<|end|><|assistant|>"
    opened = "<|user|>the river<|end|><|assistant|>"
    for begun in ("", "is long", " is long. ", "<|end|>"):
        text = pb.GenerateRequest(text=opened + begun)
        assert given(text) == begun
        ids = prompt_pb2.TokenIds(ids=read(text))
        assert given(pb.GenerateRequest(token_ids=ids)) == begun
    assert given(pb.GenerateRequest(text="the river")) == ""
    # Never all of it: an answer has something before it.
    alone = pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=(*read(chat(("user", "x")))[-1:], 7, 8)))
    assert READER.prefilled(alone, "token_ids", alone.token_ids.ids) == 2
    plain = train_tokenizer([tiny.TEXT], tiny.VOCABULARY, tiny.CONTEXT)
    plain.chat_template = None
    text = pb.GenerateRequest(text=opened + "is long")
    assert PromptReader(plain, tiny.VOCABULARY).prefilled(text, "text", read(text)) == 0
