"""Prompts: text, token ids or a conversation to the token ids that the model reads."""

from collections.abc import Sequence
from typing import Any, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from saegis.v1 import prompt_pb2
from saegis_server.engine.requests import FieldError
from saegis_server.rpc.problems import ContextLengthError, PreconditionError
from saegis_server.sae.left_out import special_tokens


class Prompt(Protocol):
    """Any message with a choice between text, token ids and a conversation."""

    text: str

    @property
    def token_ids(self) -> prompt_pb2.TokenIds: ...
    @property
    def chat(self) -> prompt_pb2.Chat: ...


class PromptReader:
    """Reads prompts with a model's tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.special = special_tokens(tokenizer)

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
        if not chat.messages:
            raise FieldError(f"{path}.messages", "must have at least one message")
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
        return [self.decode([token], skip_special_tokens=False) for token in tokens]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool, path: str = "token_ids") -> str:
        """The text of some tokens. Raises FieldError for ids that the model does not know."""
        checked = self._checked(tokens, path)
        text = self.tokenizer.decode(
            list(checked), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)


def check_length(tokens: Sequence[int], field: str, max_length: int, completion: int) -> None:
    """Raise ContextLengthError unless `completion` more tokens fit into the context after the prompt."""
    if len(tokens) + completion > max_length:
        raise ContextLengthError(field, len(tokens), max_length)
