"""The command `saegis policy apply`: check a bundle, show what it changes, and put it in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection, connecting
from saegis.cli.output import FAILURE, console, fail, print_json
from saegis.cli.policy.bundle import BundlePath, packed, problem_table

if TYPE_CHECKING:
    from saegis import PolicyState, Validation

EPILOG = """
[bold]Examples[/bold]

saegis policy apply ./my-policy

saegis policy apply my-policy.tar.gz --shadow

saegis policy apply ./my-policy --dry-run --json

The server checks the bundle and runs its cases; what does not hold together changes nothing. With --shadow
the bundle is evaluated beside the revision in force and does not act. If somebody else changes the policy
meanwhile, nothing is put.
"""
_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


@connecting
def apply(
    bundle: BundlePath,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Evaluate it beside the revision in force, without acting.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show, but put nothing.")] = False,
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Check a bundle, show what it changes, and put it in force on a server."""
    archive = packed(bundle)
    with connection.client() as client:
        told = client.validate_policy(archive)
        _check(told, bundle, json)
        if not json:
            _show(told)
        state = None
        if not dry_run:
            etag = told.replaces.etag if told.replaces is not None else ""
            state = client.put_policy(archive, etag=etag, shadow=shadow)
    if json:
        print_json({"valid": True, "changes": told.changes, "policy": state})
    elif state is not None:
        console().print(_done(state, shadow), soft_wrap=True)


def _check(told: Validation, path: Path, json: bool) -> None:
    """End the command where the server would not take the bundle."""
    if told.valid:
        return
    if json:
        print_json({"valid": False, "problems": told.problems})
        raise typer.Exit(FAILURE)
    count = f"{len(told.problems)} problem{'' if len(told.problems) == 1 else 's'}"
    console().print(problem_table(told.problems, f"{path}: {count}"))
    raise fail(f"the server does not take {path}", "correct the bundle; nothing was changed")


def _show(told: Validation) -> None:
    """Print what the bundle is and what it changes."""
    new = told.revision
    assert new is not None  # noqa: S101 - a valid bundle was read
    was = told.replaces.active if told.replaces is not None else None
    since = f"{was.revision} (serial {was.serial})" if was is not None else "new"
    console().print(Text(f"{new.name}: {since} -> {new.revision} (serial {new.serial})"), soft_wrap=True)
    for each in told.changes or ():
        console().print(Text(f"  {_SIGNS[each.change]} {each.key}", style=_STYLES[each.change]))
    if told.changes is None:
        console().print(Text("  what changes is not told: it needs the role administer"))
    elif not told.changes:
        console().print(Text("  no rule, allowance, limit or protection changes"))


def _done(state: PolicyState, shadow: bool) -> Text:
    revision = state.shadow if shadow else state.active
    assert revision is not None  # noqa: S101 - a candidate was put
    what = "beside the revision in force: " if shadow else "in force: "
    return Text.assemble(
        (what, "bold green"), f"{revision.name}@{revision.revision}, digest {revision.digest[:12]}"
    )
