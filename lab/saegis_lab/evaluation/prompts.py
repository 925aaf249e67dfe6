"""Prompts to evaluate with: a JSONL file, one object a line with `prompt`, `language` and `harmful`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.errors import EvaluationFileError
from saegis_lab.evaluation.records import Record, parse_record, read_text

if TYPE_CHECKING:
    from saegis import ChatMessage


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A user's message, the language that it is in, and whether it asks for something harmful.

    Raises ValueError where prompt or language is blank.
    """

    prompt: str
    language: str
    harmful: bool

    def __post_init__(self) -> None:
        for name in ("prompt", "language"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is blank")

    @property
    def messages(self) -> list[ChatMessage]:
        """The prompt as a conversation of one turn."""
        return [{"role": "user", "content": self.prompt}]


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts, in the order of the file; blank lines are passed over.

    Raises EvaluationFileError with the line's number for anything that is not as `Prompt` says, and for a
    file without prompts.
    """
    prompts = []
    # Only \n ends a line: JSON strings may hold other separators of Unicode.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(parse_record(Prompt, line))
        except ValueError as error:
            raise EvaluationFileError(path, str(error), number) from error
    if not prompts:
        raise EvaluationFileError(path, "holds no prompts; write one JSON object a line")
    return tuple(prompts)


def languages_of(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """The languages of the prompts, in the order in which they first occur."""
    return tuple(dict.fromkeys(prompt.language for prompt in prompts))
