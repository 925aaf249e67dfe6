"""Control tokens: chat templates mark turns with them, and no message's content can write them."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: The shape of a control token that a template may compose, such as "<|" + role + "|>".
_MARKER = re.compile(r"<[|｜].*[|｜]>")
#: The length of secret numbers. No template and no normalization changes digits.
_DIGITS = 24


class ForgeryError(ValueError):
    """A message's content would become control tokens; `position` is that of the message."""

    def __init__(self, position: int) -> None:
        super().__init__(
            "the model's chat template or tokenizer makes control tokens of it; only text can be content"
        )
        self.position = position


class ControlTokens:
    """Tokenizes conversations so that control tokens come from the template alone.

    It has a copy of the tokenizer that knows the control tokens only by secret names. Control tokens that the
    template writes are replaced by these names; the same texts in a content are plain text to the copy. Text
    without control tokens gets the same tokens as from the tokenizer. Safe to use from several threads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, more: Sequence[str] = ()) -> None:
        """`more`: further added tokens that only the template may write."""
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TypeError(
                "only the tokenizers of the library 'tokenizers' can tell control tokens from text"
            )
        texts = _control_texts(tokenizer, more)
        self._finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        self._finder.add_tokens([AddedToken(text, normalized=False) for text in texts])
        self._names = {text: f"<{_number()}>" for text in texts}
        self._copy = _copied(tokenizer.backend_tokenizer, self._names)
        added = tokenizer.added_tokens_decoder
        self._ids = {
            self._copy.token_to_id(self._names.get(token.content, token.content)): number
            for number, token in added.items()
        }
        # Any character that the tokenizer does not know becomes the unknown token, also in a content.
        unknown = tokenizer.unk_token_id
        self._controls = frozenset(
            number for number, token in added.items() if token.content in self._names and number != unknown
        )

    def tokens(self, render: Callable[[Sequence[str]], str], contents: Sequence[str]) -> tuple[int, ...]:
        """The tokens of a conversation; `render` makes its text from contents. Raises ForgeryError."""
        mark, forged = _number(), list[str]()

        def stand_in(text: str) -> str:
            forged.append(text)
            return f"{mark}{len(forged) - 1:010}"

        rendered = render([self._replaced(content, stand_in) for content in contents])
        written = self._written(rendered)
        if written - self._written(render([_blank(content) for content in contents])):
            raise ForgeryError(self._culprit(render, contents, written))
        named = self._replaced(rendered, self._names.__getitem__)
        text = re.sub(f"{mark}([0-9]{{10}})", lambda match: forged[int(match[1])], named)
        ids = tuple(
            self._ids.get(number, number) for number in self._copy.encode(text, add_special_tokens=False).ids
        )
        if sum(number in self._controls for number in ids) > written.total():
            raise ForgeryError(self._culprit(render, contents, written))
        return ids

    def _culprit(
        self, render: Callable[[Sequence[str]], str], contents: Sequence[str], written: Counter[str]
    ) -> int:
        """The first message whose content has control tokens, or without which there would be fewer."""
        for position, content in enumerate(contents):
            others = [*contents[:position], _blank(content), *contents[position + 1 :]]
            if next(self._spans(content), None) or written - self._written(render(others)):
                return position
        return 0

    def _written(self, text: str) -> Counter[str]:
        return Counter(text[start:end] for start, end in self._spans(text))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each control token in a text."""
        encoding = self._finder.encode(text, add_special_tokens=False)
        return (span for number, span in zip(encoding.ids, encoding.offsets, strict=True) if number > 0)

    def _replaced(self, text: str, write: Callable[[str], str]) -> str:
        parts, at = list[str](), 0
        for start, end in self._spans(text):
            parts += [text[at:start], write(text[start:end])]
            at = end
        return "".join((*parts, text[at:]))


def _control_texts(tokenizer: PreTrainedTokenizerFast, more: Sequence[str] = ()) -> list[str]:
    """The added tokens that are special, occur in the chat template, look like a control token, or are more.

    Other added tokens, such as runs of spaces or HTML tags, are text.
    """
    template = str(tokenizer.chat_template)
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special
        or (token.content.strip() and token.content in template)
        or _MARKER.fullmatch(token.content)
        or token.content in more
    ]


def _copied(backend: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy of a tokenizer with renamed tokens, which neither adds nor pads nor truncates."""
    made = json.loads(backend.to_str())
    for token in made["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    # A renamed token gets a new id. If the vocabulary has gaps, fillers keep it from an id that is in use.
    own = backend.get_vocab(with_added_tokens=False)
    gaps = max(own.values(), default=-1) + 1 - len(own)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fillers = [{"id": 0, "content": f"<{_number()}>", "special": True, **flags} for _ in range(gaps)]
    made["added_tokens"] = [*fillers, *made["added_tokens"]]
    made |= {"post_processor": None, "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(made))


def _blank(content: str) -> str:
    """A stand-in for a content: a number unless it is empty or white space."""
    return _number() if content.strip() else content


def _number() -> str:
    """A random number that nobody can guess."""
    return f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
