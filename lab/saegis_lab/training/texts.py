"""Texts: labelled texts, documents split into training and held-out ones, and their token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.records import read_lines
from saegis_server.json_text import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class TokenTruth:
    """What is known of a token.

    concepts: facts about it in words, each a candidate for a feature's label, the general before the
    specific. subject: what it is about. language: the code of its language. "" where unknown.
    """

    concepts: tuple[str, ...] = ()
    subject: str = ""
    language: str = ""
    harmful: bool = False


#: The label of a feature that fires on harmful texts of whatever label.
ANYTHING_HARMFUL = "anything harmful"
_KEYS = ("text", "label", "language", "harmful", "image")


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text; `label` says in words what it is about, `language` is its code, such as "en". image: the file
    of a picture that belongs to it, None where there is none."""

    text: str
    label: str
    language: str
    harmful: bool = False
    image: Path | None = None

    @property
    def truth(self) -> TokenTruth:
        """What is known of each of its tokens."""
        concepts = [self.label, f"{self.label} in {self.language}", f"language {self.language}"]
        if self.harmful:
            concepts.append(ANYTHING_HARMFUL)
        return TokenTruth(tuple(concepts), self.label, self.language, self.harmful)


def read_labelled_texts(path: Path) -> tuple[LabelledText, ...]:
    """The texts of a JSONL file, in order; empty lines are skipped.

    A line is {"text": str, "label": str, "language": str, "harmful": bool, "image": str}; `harmful` may be
    left out and is then false. `image` is for lines with a picture, a file beside this one (null for none),
    and such a line may have no text. Raises InputFileError for anything else, and for a file without texts.
    """
    return read_lines(path, partial(_parse, path.parent), "there are no texts in it")


def _parse(folder: Path, line: str) -> LabelledText:
    """One line of a file in the folder. Raises ValueError that names the field."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    unknown = sorted(entry.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(_KEYS)}")
    harmful = entry.get("harmful", False)
    if not isinstance(harmful, bool):
        raise ValueError(f"harmful is {harmful!r}, not true or false")
    label, language = _words(entry, "label"), _words(entry, "language")
    if entry.get("image") is None:
        return LabelledText(_words(entry, "text"), label, language, harmful)
    text = _words(entry, "text") if entry.get("text") else ""
    return LabelledText(text, label, language, harmful, folder / _words(entry, "image"))


def _words(entry: dict[str, object], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}, not a text")
    return value


#: How many texts are encoded at a time.
_AT_A_TIME = 256


class TextError(ValueError):
    """A text file that cannot be used; says which line, and why."""

    def __init__(self, path: Path, reason: str, line: int | None = None) -> None:
        super().__init__(f"{path}{'' if line is None else f':{line}'}: {reason}")


def read_documents(path: Path) -> Iterator[str]:
    """The documents of one file, in order.

    A document is the field `text` of a line's object in a .jsonl, and a paragraph between blank lines in a
    .txt. Raises TextError for another kind of file, a file that cannot be read, and a wrong line.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise TextError(path, "is neither .txt (paragraphs) nor .jsonl (objects with a field text)")
    if path.suffix == ".jsonl":
        for number, line in _lines(path):
            if line.strip():
                yield _text_field(path, number, line)
        return
    paragraph: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, without their ends."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise TextError(path, f"is not UTF-8: {error}", number) from error
    except OSError as error:
        raise TextError(path, f"cannot be read: {error}") from error


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        value = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise TextError(path, f"is not JSON: {error}", number) from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise TextError(path, "is not an object with a string in the field text", number)
    return text


@dataclass(frozen=True)
class TextSplit:
    """The documents of some files, split into training and held-out ones.

    With `held_out_file` its documents are the held-out ones and all others are for training. Without it, a
    share `held_out` of the documents is held out: the document and the seed alone decide, so equal documents
    stay on one side. Raises ValueError for a share outside 0 to 1.
    """

    files: Sequence[Path]
    held_out_file: Path | None = None
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out is {self.held_out}; it is a share of the texts, between 0 and 1")

    def training(self) -> Iterator[str]:
        """The training documents, once."""
        for text in self._all():
            if self.held_out_file is not None or not self._is_held_out(text):
                yield text

    def held_out_documents(self) -> Iterator[str]:
        """The held-out documents, once."""
        if self.held_out_file is not None:
            yield from read_documents(self.held_out_file)
        else:
            yield from filter(self._is_held_out, self._all())

    def _all(self) -> Iterator[str]:
        for path in self.files:
            yield from read_documents(path)

    def _is_held_out(self, text: str) -> bool:
        digest = hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self.held_out * 2**64


@dataclass(frozen=True)
class Encoder:
    """How texts become rows of token ids, each of at most `context` tokens.

    raw: the texts hold the special tokens that they need, and the tokenizer adds none.
    """

    tokenizer: PreTrainedTokenizerFast
    context: int
    raw: bool = False

    def rows(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The token ids of each text; a longer text gives one row for each piece.

        Where a text begins with the beginning-of-sequence token, all of its pieces do. Raises ValueError for
        a text that brings its own while the tokenizer adds one.
        """
        stream = iter(texts)
        while batch := list(islice(stream, _AT_A_TIME)):
            encoded = self.tokenizer(batch, add_special_tokens=not self.raw, verbose=False)
            for text, ids in zip(batch, encoded["input_ids"], strict=True):
                yield from self._pieces(text, ids)

    def _pieces(self, text: str, ids: list[int]) -> Iterator[list[int]]:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise ValueError(
                f"the text {text[:40]!r} begins with {self.tokenizer.bos_token}, which the tokenizer adds "
                "too; give --raw for texts that hold their special tokens"
            )
        head = ids[:1] if ids[:1] == [bos] else []
        step = max(1, self.context - len(head))
        for start in range(len(head), len(ids), step):
            yield [*head, *ids[start : start + step]]

    def sample(self, text: str, tokens: int) -> str:
        """The beginning of `text` that its first `tokens` tokens cover, as plain text.

        The beginning-of-sequence token of a raw text is left out where the tokenizer adds one.
        """
        bos = self.tokenizer.bos_token
        if self.raw and bos is not None and self.adds_bos:
            text = text.removeprefix(bos)
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"][:tokens]]
        return text[: max(ends, default=0)]

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts a beginning-of-sequence token before a text."""
        return bool(self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id])
