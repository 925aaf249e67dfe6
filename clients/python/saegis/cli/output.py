"""What commands print: text and tables for people, JSON for programs, errors that say what to do next."""

import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

FAILURE = 1
USAGE = 2
NAME = "saegis"
#: The width of tables if no terminal gives one.
FILE_WIDTH = 120


def console() -> Console:
    """The present standard output, which tests and shells replace."""
    return _widened(Console(highlight=False))


def notes() -> Console:
    """Standard error, for everything beside the answer: receipts, notes, progress and errors."""
    return _widened(Console(stderr=True, highlight=False))


def _widened(console: Console) -> Console:
    # With a width of 0 nothing would be printed.
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
    """`value` as JSON, in ASCII if the output's encoding lacks a character."""
    document = plain(value)
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, indent=indent)
    return text


def plain(value: object) -> Any:
    """`value` in JSON form. Raises TypeError for what has no JSON form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def titled(title: str, columns: Iterable[str], numbers: Collection[str] = (), style: str = "bold") -> Table:
    """A table with a title and no rows yet. The columns in `numbers` are aligned to the right."""
    table = Table(title=Text(title, style), title_justify="left", caption_justify="left")
    for name in columns:
        if name in numbers:
            # Digits that were cut off would leave another number.
            table.add_column(Text(name), justify="right", overflow="fold")
        else:
            table.add_column(Text(name), overflow="fold")
    return table


def shares(by_language: Mapping[str, float]) -> str:
    """Shares by language on one line, "-" for none."""
    return "  ".join(f"{code} {share:.2f}" for code, share in sorted(by_language.items())) or "-"


def fail(message: str, hint: str = "", code: int = FAILURE, details: Iterable[str] = ()) -> typer.Exit:
    """Print an error and what to do next on standard error. Raising the result ends the command."""
    sys.stdout.flush()
    out = notes()
    out.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    for detail in details:
        out.print(Text(f"       {detail}"), soft_wrap=True)
    if hint:
        out.print(Text.assemble(("next:  ", "bold"), hint), soft_wrap=True)
    return typer.Exit(code)


def own_command() -> str:
    """How the user can type the running `saegis`, for messages that name a command.

    It is `saegis` if the shell finds this one by that name, else its path, relative if that is shorter. If it
    runs as a module, it is the script beside this Python or, without one, `python -m` with the module.
    """
    script = Path(sys.argv[0])
    if script.name != NAME:
        script = Path(sys.executable).parent / NAME
    if not script.is_file():
        module = "saegis_server.cli" if "saegis_server.cli" in sys.modules else "saegis.cli"
        return f"{shlex.quote(sys.executable)} -m {module}"
    on_path = shutil.which(NAME)
    if on_path is not None and Path(on_path).resolve() == script.resolve():
        return NAME
    # Not resolved, since users may name an environment by a link.
    absolute = os.path.abspath(script)
    try:
        relative = os.path.relpath(absolute)
    except FileNotFoundError:
        # The current folder is gone, but the hint must still be printed.
        return shlex.quote(absolute)
    # The shell would search PATH for a bare name.
    relative = relative if os.sep in relative else os.path.join(os.curdir, relative)
    return shlex.quote(min(relative, absolute, key=len))
