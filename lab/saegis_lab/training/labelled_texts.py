"""Labelled texts: JSONL of texts with what each is about, its language, and whether it is harmful."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saegis_lab.training.token_truth import TokenTruth
from saegis_server.json_text import parse_json

#: The label of a feature that fires on harmful texts of whatever label.
ANYTHING_HARMFUL = "anything harmful"
_KEYS = ("text", "label", "language", "harmful")


class LabelledTextError(ValueError):
    """A file of labelled texts that cannot be used; the message names the file, the line and the field."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text; `label` says in words what it is about, `language` is its code, such as "en"."""

    text: str
    label: str
    language: str
    harmful: bool = False

    @property
    def truth(self) -> TokenTruth:
        """What is known of each of its tokens."""
        concepts = [self.label, f"{self.label} in {self.language}", f"language {self.language}"]
        if self.harmful:
            concepts.append(ANYTHING_HARMFUL)
        return TokenTruth(tuple(concepts), self.label, self.language, self.harmful)


def read_labelled_texts(path: Path) -> tuple[LabelledText, ...]:
    """The texts of a JSONL file, in order; empty lines are passed over.

    A line is {"text": str, "label": str, "language": str, "harmful": bool}; `harmful` may be left out and
    is then false. Raises LabelledTextError for anything else, and for a file without texts.
    """
    try:
        # Only \n ends a line: JSON strings may hold other separators of Unicode.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelledTextError(f"{path}: cannot be read: {error}") from error
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            texts.append(_parse(line))
        except (ValueError, RecursionError) as error:
            raise LabelledTextError(f"{path}: line {number}: {error}") from error
    if not texts:
        raise LabelledTextError(f"{path}: there are no texts in it")
    return tuple(texts)


def _parse(line: str) -> LabelledText:
    """One line of the file. Raises ValueError that names the field."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    unknown = sorted(entry.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(_KEYS)}")
    harmful = entry.get("harmful", False)
    if not isinstance(harmful, bool):
        raise ValueError(f"harmful is {harmful!r}, not true or false")
    return LabelledText(_words(entry, "text"), _words(entry, "label"), _words(entry, "language"), harmful)


def _words(entry: dict[str, object], name: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r}, not a text")
    return value
