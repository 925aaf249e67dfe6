"""Prompts: turns text, token ids or a conversation into the token ids that the model reads."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jinja2
from transformers import PreTrainedTokenizerBase

from saegis.v1 import prompt_pb2
from saegis_server.engine.api import FieldError
from saegis_server.engine.pictures import Eyes, Placed, Shown
from saegis_server.rpc.server.threads import stop_if_unwanted
from saegis_server.rpc.wire.control_tokens import ControlTokens, ForgeryError
from saegis_server.rpc.wire.problems import ContextLengthError, PreconditionError
from saegis_server.sae.left_out import special_tokens

#: Roles whose messages are input to the model and never part of its answer.
_ASKING = frozenset({"system", "developer", "user", "tool", "function"})
#: The usual roles.
_ROLES = _ASKING | {"assistant"}
#: A comparison of a message's role with a name in a template.
_COMPARED = re.compile(r"""\brole\b['"]?\]?\s*[!=]=\s*['"]([^'"]+)['"]""")
#: The most messages that a conversation may have.
MOST_MESSAGES = 1024
#: A prompt has at most this many characters or, if that is more, this many for each token of the context.
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


class ReadPrompt(NamedTuple):
    """A prompt's tokens, and its pictures where they stand among them."""

    tokens: tuple[int, ...]
    pictures: tuple[Placed, ...] = ()


class Turn(NamedTuple):
    """One turn of a conversation: who speaks, and the parts of what is said, None for a picture."""

    role: str
    parts: tuple[str | None, ...]

    @property
    def pictures(self) -> int:
        """How many pictures it has."""
        return self.parts.count(None)


class PromptReader:
    """Reads prompts with a model's tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eyes: Eyes | None = None) -> None:
        """`eyes`: those of a model that sees pictures."""
        self.tokenizer, self.eyes = tokenizer, eyes
        self.vocab_size = vocab_size
        self.special = special_tokens(tokenizer)
        if self.has_chat_template:
            self._controls = ControlTokens(tokenizer, () if eyes is None else (eyes.placeholder,))

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations are accepted."""
        return bool(self.tokenizer.chat_template)

    def read(self, message: Prompt, kind: str | None, opens_turn: bool, path: str = "") -> tuple[int, ...]:
        """The token ids of a prompt without pictures, as `see` reads it."""
        return self.see(message, kind, opens_turn, path).tokens

    def see(
        self,
        message: Prompt,
        kind: str | None,
        opens_turn: bool,
        path: str = "",
        shown: Sequence[Shown] = (),
    ) -> ReadPrompt:
        """The token ids of a prompt, never empty, and where its pictures stand.

        kind: which of `text`, `token_ids` and `chat` is set; opens_turn: whether a conversation is rendered
        with the opening of the assistant's next turn; path: stands before the field in errors; shown: the
        pictures of a conversation, in their order. Raises FieldError, and PreconditionError for a
        conversation without a chat template.
        """
        if kind == "text":
            prompt = ReadPrompt(self.without_places(self.text(message.text), f"{path}text"))
        elif kind == "token_ids":
            named = f"{path}token_ids.ids"
            prompt = ReadPrompt(self.without_places(self._checked(message.token_ids.ids, named), named))
        elif kind == "chat":
            prompt = self.see_chat(message.chat, f"{path}chat", opens_turn, shown)
        else:
            raise FieldError(f"{path}text", "one of text, token_ids and chat must be given")
        if not prompt.tokens:
            raise FieldError(f"{path}{kind}", "must have at least one token")
        return prompt

    def without_places(self, tokens: tuple[int, ...], path: str) -> tuple[int, ...]:
        """Tokens none of which stands for a picture. Raises FieldError."""
        if self.eyes is not None and self.eyes.placeholder_id in tokens:
            at = tokens.index(self.eyes.placeholder_id)
            raise FieldError(
                path,
                f"has {self.eyes.placeholder!r} at token {at}, which stands for a picture; pictures come in "
                "a conversation",
            )
        return tokens

    def text(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The token ids of plain text, with or without the special tokens that the tokenizer adds."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def chat(self, chat: prompt_pb2.Chat, path: str, opens_turn: bool) -> tuple[int, ...]:
        """The token ids of a conversation without pictures, as `see_chat` reads it."""
        return self.see_chat(chat, path, opens_turn).tokens

    def see_chat(
        self, chat: prompt_pb2.Chat, path: str, opens_turn: bool, shown: Sequence[Shown] = ()
    ) -> ReadPrompt:
        """A conversation in the model's template. Contents never become control tokens, nor pictures.

        shown: its pictures, in their order. Raises FieldError and PreconditionError.
        """
        if not self.has_chat_template:
            raise PreconditionError(
                "NO_CHAT_TEMPLATE",
                "tokenizer",
                "the model's tokenizer has no chat template; send text instead",
            )
        if not 0 < len(chat.messages) <= MOST_MESSAGES:
            limit = f"at most {MOST_MESSAGES} messages, not {len(chat.messages)}"
            raise FieldError(f"{path}.messages", limit if chat.messages else "must have at least one message")
        for position, message in enumerate(chat.messages):
            if message.role not in self.roles:
                roles = ", ".join(sorted(self.roles))
                raise FieldError(f"{path}.messages[{position}].role", f"must be one of {roles}")
        turns = [turn_of(message) for message in chat.messages]
        if (given := sum(turn.pictures for turn in turns)) != len(shown):
            raise FieldError(f"{path}.messages", f"has {given} pictures, which are not read here")
        try:
            return self._with_pictures(self._rendered(turns, opens_turn), shown)
        except ForgeryError as error:
            raise FieldError(f"{path}.messages[{error.position}].content", str(error)) from error
        except jinja2.TemplateError as error:
            # Templates refuse what they do not know, such as roles that do not alternate.
            raise FieldError(f"{path}.messages", f"the model's chat template refuses it: {error}") from error

    @cached_property
    def roles(self) -> frozenset[str]:
        """The roles that a conversation may have: the usual ones, and those that the chat template knows.

        Others are refused, since a template may make control tokens of them.
        """
        return _ROLES | frozenset(_COMPARED.findall(str(self.tokenizer.chat_template)))

    def _with_pictures(self, tokens: tuple[int, ...], shown: Sequence[Shown]) -> ReadPrompt:
        """A prompt in whose tokens each picture stands where the template wrote its placeholder.

        Raises jinja2.TemplateError for a template that writes more or fewer of them than there are pictures.
        """
        if self.eyes is None:
            return ReadPrompt(tokens)
        placeholder = self.eyes.placeholder_id
        if (places := tokens.count(placeholder)) != len(shown):
            raise jinja2.TemplateRuntimeError(f"it has places for {places} pictures, not for {len(shown)}")
        whole, placed = list[int](), list[Placed]()
        for token in tokens:
            if token == placeholder:
                placed.append(Placed(len(whole), shown[len(placed)]))
                whole += placed[-1].shown.tokens
            else:
                whole.append(token)
        return ReadPrompt(tuple(whole), tuple(placed))

    def prefilled(
        self, message: Prompt, kind: str | None, tokens: Sequence[int], pictures: Sequence[Placed] = ()
    ) -> int:
        """How many tokens at the prompt's end begin the assistant's answer; always fewer than all.

        In a conversation they are the last message if its role is the assistant's, to the end of the prompt.
        In text and token ids they are what follows the last opening of an assistant's turn.
        """
        if not self.has_chat_template:
            return 0
        if kind == "chat":
            start = self._last_turn(message.chat, tokens, pictures)
        else:
            opening, spaces = self._opening
            start = _end_of_last(opening, tokens)
            if tuple(tokens[start : start + len(spaces)]) == spaces:
                start += len(spaces)
        return len(tokens) - max(start, 1)

    def _last_turn(self, chat: prompt_pb2.Chat, tokens: Sequence[int], pictures: Sequence[Placed]) -> int:
        """Where the answer that the caller has begun starts; in doubt, too early rather than too late."""
        if not begins_answer(chat):
            return len(tokens)
        turns, before = [turn_of(message) for message in chat.messages[:-1]], tuple[int, ...]()
        shown = [each.shown for each in pictures][: sum(turn.pictures for turn in turns)]
        try:
            if turns:
                before = self._with_pictures(self._rendered(turns, opens_turn=True), shown).tokens
        except (jinja2.TemplateError, ForgeryError):
            before = ()
        pairs = enumerate(zip(before, tokens, strict=False))
        return next((place for place, (old, new) in pairs if old != new), min(len(before), len(tokens)))

    @cached_property
    def _opening(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that open an assistant's turn, and the white space after them.

        The white space is separate since it may merge with the text that follows.
        """
        turns = [Turn("user", ("a",))]
        try:
            closed, opened = self._rendered(turns, False), self._rendered(turns, True)
        except jinja2.TemplateError:
            return (), ()
        opening = opened[len(closed) :] if opened[: len(closed)] == closed else ()
        end = len(opening)
        while end > 0 and not self.pieces(opening[end - 1 : end])[0].strip():
            end -= 1
        return opening[:end], opening[end:]

    def _rendered(self, turns: Sequence[Turn], opens_turn: bool) -> tuple[int, ...]:
        """The tokens of turns, one for each picture. Raises ForgeryError and jinja2.TemplateError."""
        texts = [
            (number, part) for number, turn in enumerate(turns) for part in turn.parts if part is not None
        ]

        def render(contents: Sequence[str]) -> str:
            left = iter(contents)
            spoken = [
                {"role": turn.role, "content": self._content([_next(part, left) for part in turn.parts])}
                for turn in turns
            ]
            return self._template(spoken, opens_turn)

        try:
            return self._controls.tokens(render, [part for _, part in texts])
        except ForgeryError as error:
            raise ForgeryError(texts[error.position][0] if texts else 0) from error

    def _content(self, parts: Sequence[str | None]) -> object:
        """What a template is given of a turn's parts: a string where it takes one and there is no picture."""
        if self._takes_strings and None not in parts:
            return "".join(part for part in parts if part is not None)
        return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]

    @cached_property
    def _takes_strings(self) -> bool:
        """Whether the template writes a content that is a string; some know parts alone."""
        if self.eyes is None:
            return True
        mark = "saegis 24680"
        try:
            return mark in self._template([{"role": "user", "content": mark}], False)
        except jinja2.TemplateError:
            return False

    def _template(self, spoken: list[dict[str, Any]], opens_turn: bool) -> str:
        """What the chat template makes of a conversation. Raises jinja2.TemplateError."""
        try:
            text: Any = self.tokenizer.apply_chat_template(
                spoken, add_generation_prompt=opens_turn, tokenize=False
            )
        except jinja2.TemplateError:
            raise
        except Exception as error:
            # A template is a program that comes with the model and may raise anything.
            raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
        return str(text)

    def _checked(self, tokens: Sequence[int], path: str) -> tuple[int, ...]:
        for position, token in enumerate(tokens):
            if token >= self.vocab_size:
                raise FieldError(
                    f"{path}[{position}]", f"the model's tokens are 0 to {self.vocab_size - 1}, not {token}"
                )
        return tuple(tokens)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token's text by itself; bytes that are no whole character become U+FFFD."""
        texts: dict[int, str] = {}
        for token in tokens:
            if token not in texts:
                stop_if_unwanted()
                texts[token] = self.decode([token], skip_special_tokens=False)
        return [texts[token] for token in tokens]

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool, path: str = "token_ids") -> str:
        """The text of some tokens. Raises FieldError for ids that the model does not know."""
        checked = self._checked(tokens, path)
        text = self.tokenizer.decode(
            list(checked), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text if isinstance(text, str) else "".join(text)


def _next(part: str | None, texts: Iterator[str]) -> str | None:
    """What stands for a part of a turn: the next text, but for a picture."""
    return None if part is None else next(texts)


def _end_of_last(opening: Sequence[int], tokens: Sequence[int]) -> int:
    """The end of the last occurrence of `opening` in the tokens; the tokens' end if there is none."""
    width, pattern = len(opening), tuple(opening)
    if not width:
        return len(tokens)
    places = range(len(tokens) - width, -1, -1)
    return next((at + width for at in places if tuple(tokens[at : at + width]) == pattern), len(tokens))


def turn_of(message: prompt_pb2.ChatMessage) -> Turn:
    """A message as a turn; texts without a picture among them are one text."""
    parts = tuple(part.text if part.WhichOneof("part") == "text" else None for part in message.parts)
    if None not in parts:
        return Turn(message.role, ("".join(str(part) for part in parts) or message.content,))
    return Turn(message.role, parts)


def check_parts(chat: prompt_pb2.Chat, path: str) -> None:
    """Raise FieldError for a message with a content beside its parts, and for a part that is none."""
    for position, message in enumerate(chat.messages):
        where = f"{path}.messages[{position}]"
        if message.parts and message.content:
            raise FieldError(f"{where}.content", "must be empty where parts are given")
        for place, part in enumerate(message.parts):
            if part.WhichOneof("part") is None:
                raise FieldError(f"{where}.parts[{place}]", "must be a text or an image")


def begins_answer(chat: prompt_pb2.Chat) -> bool:
    """Whether a conversation ends with the beginning of the model's answer."""
    return bool(chat.messages) and chat.messages[-1].role not in _ASKING


def check_size(message: Prompt, kind: str | None, max_length: int) -> None:
    """Refuse a prompt that cannot fit into the context, before it is tokenized.

    Raises ContextLengthError and FieldError.
    """
    if kind == "token_ids":
        check_length(message.token_ids.ids, kind, max_length, completion=0)
    else:
        check_text(message, kind, max_length)


def check_text(message: Spoken, kind: str | None, max_length: int) -> None:
    """Raise FieldError for a text or a conversation of far more characters than fit into the context."""
    most = most_characters(max_length)
    if kind == "text":
        check_characters("text", len(message.text), most)
    elif kind == "chat":
        turns = message.chat.messages
        if len(turns) <= MOST_MESSAGES:
            written = sum(len(turn.content) + len(turn.role) for turn in turns)
            written += sum(len(part.text) for turn in turns for part in turn.parts)
            check_characters("chat.messages", written, most)
            check_parts(message.chat, "chat")


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
