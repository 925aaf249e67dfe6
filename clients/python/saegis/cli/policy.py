"""The family `saegis policy`, its commands `apply | list | history | roll-back`, and the packing of bundles.

`saegis policy explain` is in the module `explain`; the other commands come with the server package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer
from rich.table import Table
from rich.text import Text

from saegis.bundles import BundleFilesError, pack
from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.family import Family
from saegis.cli.output import FAILURE, console, fail, notes, own_command, print_json, titled

if TYPE_CHECKING:
    from saegis import PolicyRevision, PolicyState, Validation


class _Policy(Family):
    """The commands `saegis policy ...`."""

    names = (
        *("validate", "test", "diff", "explain", "make-filter", "calibrate", "sign", "keygen"),
        *("apply", "list", "history", "roll-back"),
    )


app = typer.Typer(
    cls=_Policy,
    no_args_is_help=True,
    help="Check, try, calibrate, sign and put in force policies: the operator's rules.",
)

APPLY_EPILOG = """
[bold]Examples[/bold]

saegis policy apply ./my-policy

saegis policy apply my-policy.tar.gz --shadow

saegis policy apply ./my-policy --dry-run --json

The server checks the bundle and runs its cases; what does not hold together changes nothing. With --shadow
the bundle is evaluated beside the revision in force and does not act. If somebody else changes the policy
meanwhile, nothing is put.
"""
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
_STYLES = {"added": "green", "removed": "red", "changed": "yellow"}
_SIGNS = {"added": "+", "removed": "-", "changed": "~"}

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle: its directory, or a .tar or .tar.gz of it.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")]


@app.command(epilog=APPLY_EPILOG)
@options.grouped
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
        validation = client.validate_policy(archive)
        _check(validation, bundle, json)
        if not json:
            _show(validation)
        state = None
        if not dry_run:
            etag = validation.replaces.etag if validation.replaces is not None else ""
            state = client.put_policy(archive, etag=etag, shadow=shadow)
    if json:
        print_json({"valid": True, "changes": validation.changes, "policy": state})
    elif state is not None:
        console().print(_done(state, shadow), soft_wrap=True)


def _check(validation: Validation, path: Path, json: bool) -> None:
    """End the command if the server would not take the bundle."""
    if validation.valid:
        return
    if json:
        print_json({"valid": False, "problems": validation.problems})
        raise typer.Exit(FAILURE)
    count = f"{len(validation.problems)} problem{'' if len(validation.problems) == 1 else 's'}"
    console().print(problem_table(validation.problems, f"{path}: {count}"))
    raise fail(f"the server does not take {path}", "correct the bundle; nothing was changed")


def _show(validation: Validation) -> None:
    """Print what the bundle is and what it changes."""
    new = validation.revision
    assert new is not None  # noqa: S101 - a valid bundle was read
    was = validation.replaces.active if validation.replaces is not None else None
    since = f"{was.revision} (serial {was.serial})" if was is not None else "new"
    console().print(Text(f"{new.name}: {since} -> {new.revision} (serial {new.serial})"), soft_wrap=True)
    for change in validation.changes or ():
        console().print(Text(f"  {_SIGNS[change.change]} {change.key}", style=_STYLES[change.change]))
    if validation.changes is None:
        console().print(Text("  what changes is not told: it needs the role administer"))
    elif not validation.changes:
        console().print(Text("  no rule, allowance, limit or protection changes"))


def _done(state: PolicyState, shadow: bool) -> Text:
    revision = state.shadow if shadow else state.active
    assert revision is not None  # noqa: S101 - a candidate was put
    what = "beside the revision in force: " if shadow else "in force: "
    return Text.assemble(
        (what, "bold green"), f"{revision.name}@{revision.revision}, digest {revision.digest[:12]}"
    )


@app.command("list", epilog=LIST_EPILOG)
@options.grouped
def list_policies(
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """List the policies in force, and the candidates beside them."""
    with connection.client() as client:
        listing = client.list_policies()
    if json:
        print_json(listing)
    elif not listing.policies:
        notes().print("no policy is in force: every request is denied")
    else:
        states = [revision for state in listing.policies for revision in (state.active, state.shadow)]
        console().print(_table(revision for revision in states if revision is not None))


@app.command(epilog=HISTORY_EPILOG)
@options.grouped
def history(
    name: Name,
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show the revisions that a policy had, newest first."""
    with connection.client() as client:
        revisions = client.policy_revisions(name)
    if json:
        print_json({"revisions": revisions})
    else:
        console().print(_table(revisions))


@app.command("roll-back", epilog=ROLL_BACK_EPILOG)
@options.grouped
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
    shown = f"{active.name}@{active.revision}, serial {active.serial}, digest {active.digest[:12]}"
    console().print(Text.assemble(("in force: ", "bold green"), shown), soft_wrap=True)


def _table(revisions: Iterable[PolicyRevision]) -> Table:
    table = Table()
    for column in ("policy", "serial", "revision", "digest", "signed by", "put", "by", ""):
        table.add_column(column, justify="right" if column == "serial" else "left", overflow="fold")
    for revision in revisions:
        put = revision.put_time.strftime("%Y-%m-%d %H:%M:%SZ") if revision.put_time is not None else "-"
        state = "in force" if revision.active else "candidate" if revision.shadow else ""
        which = (revision.name, str(revision.serial), revision.revision, revision.digest[:12])
        table.add_row(*map(Text, (*which, revision.signed_by or "-", put, revision.put_by, state)))
    return table


def packed(path: Path) -> bytes:
    """The archive of the bundle at `path`; ends the command with every problem if it is no bundle."""
    try:
        return pack(path)
    except BundleFilesError as error:
        hint = f"{own_command()} policy validate shows more"
        raise fail(f"{path} is no bundle", hint, details=map(str, error.problems)) from error


class Problem(Protocol):
    """One thing that is wrong: its file, line (0: none), key and message."""

    @property
    def file(self) -> str: ...
    @property
    def line(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def message(self) -> str: ...


def problem_table(problems: Sequence[Problem], title: str, style: str = "bold red") -> Table:
    """A table with a row for each problem: its place, key and message."""
    table = titled(title, ("where", "key"), style=style)
    table.add_column("problem", overflow="fold", ratio=1)
    for problem in problems:
        place = f"{problem.file}:{problem.line}" if problem.line else problem.file
        table.add_row(Text(place or "-"), Text(problem.path or "-"), Text(problem.message))
    return table
