"""The family `saegis directions` and its commands `upload | list | delete`; `make` comes with the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.family import Family
from saegis.cli.output import console, notes, print_json, titled

if TYPE_CHECKING:
    from saegis import KeptDirection


class _Directions(Family):
    """The commands `saegis directions ...`."""

    names = ("make", "upload", "list", "delete")


app = typer.Typer(
    cls=_Directions,
    no_args_is_help=True,
    help="Make directions to steer along, and keep them on a server, where edits name them.",
)

UPLOAD_EPILOG = """
[bold]Examples[/bold]

saegis directions upload refusal.safetensors

saegis directions upload formal.safetensors --name polite --site layers.3.resid_post --json

The file is a safetensors file, as saegis directions make writes it, or an npz archive, with one vector as
wide as the model. It is kept for your tenant alone. Edits then name it: --add direction:polite=2,
--ablate direction:refusal, or with its digest in the place of its name.
"""
LIST_EPILOG = """
[bold]Examples[/bold]

saegis directions list

saegis directions list --json
"""
DELETE_EPILOG = """
[bold]Examples[/bold]

saegis directions delete casual
"""


@app.command(epilog=UPLOAD_EPILOG)
@options.grouped
def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file with one vector.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="What it is called; by default as the file.")
    ] = None,
    site: Annotated[
        str,
        typer.Option(metavar="SITE", help="Where edits are that name none; by default what the file says."),
    ] = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Keep a direction on the server. The same one again is no error."""
    with connection.client() as client:
        kept = client.upload_direction(file, name=file.stem if name is None else name, site=site)
    _show([kept], json)


@app.command("list", epilog=LIST_EPILOG)
@options.grouped
def list_directions(json: options.Json = False, *, connection: Connection) -> None:
    """List the directions that edits may name: your tenant's and the operator's."""
    with connection.client() as client:
        directions = client.list_directions()
    if json or directions:
        _show(directions, json)
    else:
        notes().print("no direction is kept")


@app.command(epilog=DELETE_EPILOG)
@options.grouped
def delete(
    reference: Annotated[str, typer.Argument(metavar="NAME_OR_DIGEST", help="One of your tenant's own.")],
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Delete a direction. Requests that run are not affected."""
    with connection.client() as client:
        deleted = client.delete_direction(reference)
    if json:
        print_json(deleted)
    else:
        notes().print(f"deleted {deleted.name or deleted.digest}", markup=False, soft_wrap=True)


def _show(directions: Sequence[KeptDirection], json: bool) -> None:
    if json:
        print_json(directions)
    else:
        console().print(_table(directions))


def _table(directions: Sequence[KeptDirection]) -> Table:
    table = titled("directions", ("name", "site", "whose", "digest"))
    for each in directions:
        whose = "the operator's" if each.shipped else "your tenant's"
        table.add_row(
            Text(each.name or "-"), Text(each.site or "-"), whose, Text(each.digest, overflow="fold")
        )
    return table
