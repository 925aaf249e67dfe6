"""The commands `saegis policy list | history | roll-back`: what is in force, what was, and back to that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection, connecting
from saegis.cli.output import console, notes, print_json

if TYPE_CHECKING:
    from saegis import PolicyRevision

LIST_EPILOG = """
[bold]Examples[/bold]

saegis policy list

saegis policy list --json
"""
HISTORY_EPILOG = """
[bold]Examples[/bold]

saegis policy history no-harm
"""
ROLL_BACK_EPILOG = """
[bold]Examples[/bold]

saegis policy roll-back no-harm 1f0c22aa

The digest is one that saegis policy history shows, or its first 8 digits or more. What is put later still
needs a serial above all that there were.
"""
Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")]


@connecting
def list_policies(
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """List the policies in force, and the candidates beside them."""
    with connection.client() as client:
        found = client.list_policies()
    if json:
        print_json(found)
        return
    if not found.policies:
        notes().print("no policy is in force: every request is denied")
        return
    every = [each for state in found.policies for each in (state.active, state.shadow) if each is not None]
    console().print(_table(every))


@connecting
def history(
    name: Name,
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show the revisions that a policy had, newest first."""
    with connection.client() as client:
        found = client.policy_revisions(name)
    if json:
        print_json({"revisions": found})
    else:
        console().print(_table(found))


@connecting
def roll_back(
    name: Name,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="Of the revision: 8 digits or more.")],
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Put an earlier revision of a policy in force again, and no candidate beside it."""
    with connection.client() as client:
        etag = client.get_policy(name).policy.etag
        state = client.roll_back_policy(name, digest, etag=etag)
    if json:
        print_json(state)
        return
    active = state.active
    told = f"{active.name}@{active.revision}, serial {active.serial}, digest {active.digest[:12]}"
    console().print(Text.assemble(("in force: ", "bold green"), told), soft_wrap=True)


def _table(revisions: Iterable[PolicyRevision]) -> Table:
    table = Table()
    for column in ("policy", "serial", "revision", "digest", "signed by", "put", "by", ""):
        table.add_column(column, justify="right" if column == "serial" else "left", overflow="fold")
    for each in revisions:
        put = each.put_time.strftime("%Y-%m-%d %H:%M:%SZ") if each.put_time is not None else "-"
        state = "in force" if each.active else "candidate" if each.shadow else ""
        cells = (each.name, str(each.serial), each.revision, each.digest[:12], each.signed_by or "-", put)
        table.add_row(*map(Text, (*cells, each.put_by, state)))
    return table
