"""A bundle on its way to a server, and what is wrong with one, shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.table import Table
from rich.text import Text

from saegis.bundles import BundleFilesError, pack
from saegis.cli.output import fail

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle: its directory, or a .tar or .tar.gz of it.")
]


def packed(path: Path) -> bytes:
    """The archive of the bundle at `path`; ends the command, with every problem, where there is none."""
    try:
        return pack(path)
    except BundleFilesError as error:
        hint = "saegis policy validate shows more"
        raise fail(f"{path} is no bundle", hint, details=map(str, error.problems)) from error


class Problem(Protocol):
    """One thing that is wrong: at which file, line (0: none) and key, and what."""

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...


def problem_table(problems: Sequence[Problem], title: str, style: str = "bold red") -> Table:
    """One row for each problem: where, at which key, what."""
    table = Table(title=Text(title), title_justify="left", title_style=style)
    table.add_column("where", overflow="fold")
    table.add_column("key", overflow="fold")
    table.add_column("problem", overflow="fold", ratio=1)
    for each in problems:
        place = f"{each.file}:{each.line}" if each.line else each.file
        table.add_row(Text(place or "-"), Text(each.path or "-"), Text(each.message))
    return table
