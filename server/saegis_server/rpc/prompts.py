"""Prompts: text, token ids or a conversation to the token ids that the model reads."""

from collections.abc import Sequence
from typing import Any, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from saegis.v1 import prompt_pb2
from saegis_server.engine.requests import FieldError
from saegis_server.rpc.problems import ContextLengthError, PreconditionError
from saegis_server.rpc.threads import stop_if_unwanted

#: The most messages that a conversation may have.
MOST_MESSAGES = 1024
#: No prompt has more characters than this, or than so many for each token of the context.
SMALLEST_TEXT_BOUND, LONGEST_TOKEN = 64 * 1024, 32


class Spoken(Protocol):
    """Any message with a choice between text and a conversation."""

    text: str

    @property
    def chat(self) -> prompt_pb2.Chat: ...


class Prompt(Spoken, Protocol):
    """Any message with a choice between text, token ids and a conversation."""

    @property
    def token_ids(self) -> prompt_pb2.TokenIds: ...


class PromptReader:
    """Reads prompts with a model's tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations are accepted."""
        return bool(self.tokenizer.chat_template)

    def read(self, message: Prompt, kind: str | None, opens_turn: bool, path: str = "") -> tuple[int, ...]:
        """The token ids of a prompt, never empty.

        kind: which of `text`, `token_ids` and `chat` is set; opens_turn: whether a conversation is rendered
        with the opening of the assistant's next turn; path: stands before the field in errors.
        Raises FieldError, and PreconditionError for a conversation without a chat template.
        """
        if kind == "text":
            tokens = self.text(message.text)
        elif kind == "token_ids":
            tokens = self._checked(message.token_ids.ids, f"{path}token_ids.ids")
        elif kind == "chat":
            tokens = self.chat(message.chat, f"{path}chat", opens_turn)
        else:
            raise FieldError(f"{path}text", "one of text, token_ids and chat must be given")
        if not tokens:
            raise FieldError(f"{path}{kind}", "must have at least one token")
        return tokens

    def text(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The token ids of plain text, with the special tokens that the tokenizer adds by itself, or not."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def chat(self, chat: prompt_pb2.Chat, path: str, opens_turn: bool) -> tuple[int, ...]:
        """The token ids of a conversation in the model's own template."""
        if not self.has_chat_template:
            raise PreconditionError(
                "NO_CHAT_TEMPLATE",
                "tokenizer",
                "the model's tokenizer has no chat template; send text instead",
            )
        if not 0 < len(chat.messages) <= MOST_MESSAGES:
            asked = f"at most {MOST_MESSAGES} messages, not {len(chat.messages)}"
            raise FieldError(f"{path}.messages", asked if chat.messages else "must have at least one message")
        for position, message in enumerate(chat.messages):
            if not message.role:
                raise FieldError(f"{path}.messages[{position}].role", "must not be empty")
        turns = [{"role": message.role, "content": message.content} for message in chat.messages]
        tokens: Any
        try:
            tokens = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=opens_turn, tokenize=True, return_dict=False
            )
        except jinja2.TemplateError as error:
            # Templates refuse what they do not know, such as roles that do not alternate.
            raise FieldError(f"{path}.messages", f"the model's chat template refuses it: {error}") from error
        return tuple(int(token) for token in tokens)

    def _checked(self, tokens: Sequence[int], path: str) -> tuple[int, ...]:
        for position, token in enumerate(tokens):
            if token >= self.vocab_size:
                raise FieldError(
                    f"{path}[{position}]", f"the model's tokens are 0 to {self.vocab_size - 1}, not {token}"
                )
        return tuple(tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token's text by itself; bytes that are no whole character show as U+FFFD."""
        found: dict[int, str] = {}
        for token in tokens:
            if token not in found:
                stop_if_unwanted()
                found[token] = self.decode([token], skip_special_tokens=False)
        return [found[token] for token in tokens]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool, path: str = "token_ids") -> str:
        """The text of some tokens. Raises FieldError for ids that the model does not know."""
        checked = self._checked(tokens, path)
        text = self.tokenizer.decode(
            list(checked), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)


def check_size(message: Prompt, kind: str | None, max_length: int) -> None:
    """Refuse a prompt that cannot fit into the context, before it is turned into tokens.

    Raises ContextLengthError and FieldError.
    """
    if kind == "token_ids":
        check_length(message.token_ids.ids, kind, max_length, completion=0)
    else:
        check_text(message, kind, max_length)


def check_text(message: Spoken, kind: str | None, max_length: int) -> None:
    """Refuse a text or a conversation of far more characters than fit into the context. Raises FieldError."""
    most = most_characters(max_length)
    if kind == "text":
        check_characters("text", len(message.text), most)
    elif kind == "chat":
        turns = message.chat.messages
        if len(turns) <= MOST_MESSAGES:
            check_characters("chat.messages", sum(len(turn.content) + len(turn.role) for turn in turns), most)


def most_characters(max_length: int) -> int:
    """How many characters may be read for a context of `max_length` tokens: far more than fit into it."""
    return max(SMALLEST_TEXT_BOUND, LONGEST_TOKEN * max_length)


def check_characters(field: str, count: int, most: int) -> None:
    """Raise FieldError for a text of more than `most` characters."""
    if count > most:
        raise FieldError(field, f"has {count} characters; this server reads at most {most}")


def check_length(tokens: Sequence[int], field: str, max_length: int, completion: int) -> None:
    """Raise ContextLengthError unless `completion` more tokens fit into the context after the prompt."""
    if len(tokens) + completion > max_length:
        raise ContextLengthError(field, len(tokens), max_length)
