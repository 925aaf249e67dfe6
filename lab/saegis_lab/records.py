"""Strict reading of the lab's JSON files: unknown keys, absent keys and wrong types are errors."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")


class InputFileError(ValueError):
    """A file that cannot be used: `path` names it, `reason` says what is wrong, in `line` if there is one."""

    def __init__(self, path: Path | str, reason: str, line: int | None = None) -> None:
        place = f"{path}: " if line is None else f"{path}: line {line}: "
        super().__init__(place + reason)
        self.path = path
        self.reason = reason
        self.line = line


class Record:
    """Base of the dataclasses that are read from JSON. Numbers must be finite."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def parse_record(kind: type[T], text: str) -> T:
    """The record that a JSON text holds. Raises ValueError naming each key that is wrong, and why."""
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        problems = [_problem(detail["loc"], detail["msg"]) for detail in error.errors(include_url=False)]
        raise ValueError("; ".join(problems)) from error
    return record


def read_record(kind: type[T], path: Path) -> T:
    """The record that a JSON file holds. Raises InputFileError, also where it cannot be read."""
    text = read_text(path)
    try:
        return parse_record(kind, text)
    except ValueError as error:
        raise InputFileError(path, str(error)) from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises InputFileError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(path, f"cannot be read: {error}") from error


def read_lines(path: Path, parse: Callable[[str], T], absent: str) -> tuple[T, ...]:
    """The results of `parse` for the lines of a file, in order; blank lines are skipped.

    Raises InputFileError with the line's number where `parse` raises ValueError, and one that says
    `absent` for a file without lines.
    """
    values = []
    # Only \n ends a line: JSON strings may hold other separators of Unicode.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append(parse(line))
        except (ValueError, RecursionError) as error:
            raise InputFileError(path, str(error), number) from error
    if not values:
        raise InputFileError(path, absent)
    return tuple(values)


def write_record(path: Path, record: Any, *optional: str) -> None:
    """Write a dataclass as indented JSON, without those `optional` entries that are empty."""
    entries = {key: value for key, value in asdict(record).items() if key not in optional or value}
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(place: tuple[int | str, ...], message: str) -> str:
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    # Pydantic puts this prefix before the messages of our constructors.
    message = message.removeprefix("Value error, ")
    known: dict[str, Any] = {
        "Unexpected keyword argument": "is not a key that it may have",
        "Field required": "is missing",
    }
    return f"{name}: {known.get(message, message)}" if name else message
