"""What commands print: text and tables for people, JSON for programs, errors that say what to do next."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

FAILURE = 1
USAGE = 2
#: How wide tables are where no terminal says how wide it is.
FILE_WIDTH = 120


def console() -> Console:
    """Standard output, as it is now: tests and shells replace it."""
    return _widened(Console(highlight=False))


def notes() -> Console:
    """Standard error, for what is not the answer itself: receipts, notes, progress and errors."""
    return _widened(Console(stderr=True, highlight=False))


def _widened(console: Console) -> Console:
    # With a width of 0 nothing at all would be printed.
    if console.width < 1 or (not console.is_terminal and "COLUMNS" not in os.environ):
        console.width = FILE_WIDTH
    return console


def print_json(value: object) -> None:
    """Print one JSON document on standard output; dataclasses become objects."""
    print(_json(value, indent=2), flush=True)


def print_json_line(value: object) -> None:
    """Print one JSON object on one line of standard output, at once."""
    print(_json(value), flush=True)


def _json(value: object, indent: int | None = None) -> str:
    """`value` as JSON, in ASCII where the output's encoding cannot show all of it."""
    told = plain(value)
    text = json.dumps(told, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(told, indent=indent)
    return text


def plain(value: object) -> Any:
    """`value` as JSON knows it. Raises TypeError for what has no JSON form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def shares(by_language: Mapping[str, float]) -> str:
    """Shares by language on one line, "-" for none."""
    return "  ".join(f"{code} {share:.2f}" for code, share in sorted(by_language.items())) or "-"


def fail(message: str, hint: str = "", code: int = FAILURE, details: Iterable[str] = ()) -> typer.Exit:
    """Print an error and what to do next on standard error; raise what is returned to end the command."""
    sys.stdout.flush()
    out = notes()
    out.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    for detail in details:
        out.print(Text(f"       {detail}"), soft_wrap=True)
    if hint:
        out.print(Text.assemble(("next:  ", "bold"), hint), soft_wrap=True)
    return typer.Exit(code)
