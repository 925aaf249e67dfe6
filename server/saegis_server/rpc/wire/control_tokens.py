"""Control tokens: those by which chat templates mark turns, and which no message's content can write."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

#: The shape of a control token that a template may put together, such as "<|" + role + "|>".
_MARKER = re.compile(r"<[|｜].*[|｜]>")
#: Digits are what no template and no normalization changes.
_DIGITS = 24


class ForgeryError(ValueError):
    """A content would become control tokens; `position` is its message's."""

    def __init__(self, position: int) -> None:
        super().__init__(
            "the model's chat template or tokenizer makes control tokens of it; only text can be content"
        )
        self.position = position


class ControlTokens:
    """Tokenizes conversations so that control tokens come from the template alone.

    It has a copy of the tokenizer that knows the control tokens by secret names only. Those that a template
    writes are given these names; the same texts in a content are, to the copy, text like any other. What has
    no such text gets the tokens that the tokenizer itself gives it. Safe to use from several threads.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise TypeError(
                "only the tokenizers of the library 'tokenizers' can tell control tokens from text"
            )
        texts = _control_texts(tokenizer)
        self._finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        self._finder.add_tokens([AddedToken(text, normalized=False) for text in texts])
        self._names = {text: f"<{_number()}>" for text in texts}
        self._copy = _copied(tokenizer.backend_tokenizer, self._names)
        known = tokenizer.added_tokens_decoder
        self._ids = {
            self._copy.token_to_id(self._names.get(each.content, each.content)): number
            for number, each in known.items()
        }
        # A character that the tokenizer does not know is the unknown token, wherever it stands.
        unknown = tokenizer.unk_token_id
        self._controls = frozenset(
            number for number, each in known.items() if each.content in self._names and number != unknown
        )

    def tokens(self, render: Callable[[Sequence[str]], str], contents: Sequence[str]) -> tuple[int, ...]:
        """The tokens of a conversation, whose text `render` gives for any contents. Raises ForgeryError."""
        mark, forged = _number(), list[str]()

        def stand_in(text: str) -> str:
            forged.append(text)
            return f"{mark}{len(forged) - 1:010}"

        rendered = render([self._replaced(content, stand_in) for content in contents])
        written = self._written(rendered)
        if written - self._written(render([_blank(content) for content in contents])):
            raise ForgeryError(self._culprit(render, contents, written))
        named = self._replaced(rendered, self._names.__getitem__)
        text = re.sub(f"{mark}([0-9]{{10}})", lambda found: forged[int(found[1])], named)
        ids = tuple(
            self._ids.get(number, number) for number in self._copy.encode(text, add_special_tokens=False).ids
        )
        if sum(number in self._controls for number in ids) > written.total():
            raise ForgeryError(self._culprit(render, contents, written))
        return ids

    def _culprit(
        self, render: Callable[[Sequence[str]], str], contents: Sequence[str], written: Counter[str]
    ) -> int:
        """The first message that has control tokens itself, or without which there were fewer."""
        for position, content in enumerate(contents):
            others = [*contents[:position], _blank(content), *contents[position + 1 :]]
            if next(self._spans(content), None) or written - self._written(render(others)):
                return position
        return 0

    def _written(self, text: str) -> Counter[str]:
        return Counter(text[start:end] for start, end in self._spans(text))

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where control tokens stand in a text."""
        found = self._finder.encode(text, add_special_tokens=False)
        return (span for number, span in zip(found.ids, found.offsets, strict=True) if number > 0)

    def _replaced(self, text: str, write: Callable[[str], str]) -> str:
        parts, at = list[str](), 0
        for start, end in self._spans(text):
            parts += [text[at:start], write(text[start:end])]
            at = end
        return "".join((*parts, text[at:]))


def _control_texts(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What is special, what the chat template writes, and what looks like a mark of either.

    Other tokens that were added, such as runs of spaces or tags of HTML, are ways to write text.
    """
    template = str(tokenizer.chat_template)
    return [
        each.content
        for each in tokenizer.added_tokens_decoder.values()
        if each.special
        or (each.content.strip() and each.content in template)
        or _MARKER.fullmatch(each.content)
    ]


def _copied(backend: Tokenizer, names: dict[str, str]) -> Tokenizer:
    """A copy that knows tokens by other names, and adds, pads and cuts off nothing."""
    made = json.loads(backend.to_str())
    for each in made["added_tokens"]:
        each["content"] = names.get(each["content"], each["content"])
    # A token under a new name gets a new id, which must be nobody's where the vocabulary has gaps.
    own = backend.get_vocab(with_added_tokens=False)
    gaps = max(own.values(), default=-1) + 1 - len(own)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fillers = [{"id": 0, "content": f"<{_number()}>", "special": True, **flags} for _ in range(gaps)]
    made["added_tokens"] = [*fillers, *made["added_tokens"]]
    made |= {"post_processor": None, "padding": None, "truncation": None}
    return Tokenizer.from_str(json.dumps(made))


def _blank(content: str) -> str:
    """A content of which nothing is left but that there is some."""
    return _number() if content.strip() else content


def _number() -> str:
    """Digits that nobody can guess."""
    return f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}}"
