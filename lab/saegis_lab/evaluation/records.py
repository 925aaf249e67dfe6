"""Strict reading of JSON into frozen dataclasses: unknown keys, absent keys and wrong types are errors."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from saegis_lab.evaluation.errors import EvaluationFileError

T = TypeVar("T")


class Record:
    """Base of the dataclasses that are read from JSON. Numbers must be finite."""

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def parse_record(kind: type[T], text: str) -> T:
    """The record that a JSON text holds. Raises ValueError naming each key that is wrong, and why."""
    try:
        record: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        problems = [_problem(each["loc"], each["msg"]) for each in error.errors(include_url=False)]
        raise ValueError("; ".join(problems)) from error
    return record


def read_record(kind: type[T], path: Path) -> T:
    """The record that a JSON file holds. Raises EvaluationFileError, also where it cannot be read."""
    text = read_text(path)
    try:
        return parse_record(kind, text)
    except ValueError as error:
        raise EvaluationFileError(path, str(error)) from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises EvaluationFileError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationFileError(path, f"cannot be read: {error}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(place: tuple[int | str, ...], message: str) -> str:
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    # What a constructor of ours says comes with this prefix.
    message = message.removeprefix("Value error, ")
    known: dict[str, Any] = {
        "Unexpected keyword argument": "is not a key that it may have",
        "Field required": "is missing",
    }
    return f"{name}: {known.get(message, message)}" if name else message
