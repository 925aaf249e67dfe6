"""The command `saegis policy apply`: check a bundle, show what it changes, and put it in force."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from saegis_server.cli import options
from saegis_server.cli.client.connection import Connection, connecting
from saegis_server.cli.output import FAILURE, console, fail, print_json
from saegis_server.cli.policy import world as policy_world
from saegis_server.cli.policy.validate import problem_table

if TYPE_CHECKING:
    from saegis import Client, Policy, PolicyState, Validation
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.bundle.changes import Changed

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
    bundle: policy_world.BundlePath,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Evaluate it beside the revision in force, without acting.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show, but put nothing.")] = False,
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Check a bundle, show what it changes, and put it in force on a server."""
    from saegis_server.policy.bundle.changes import changes

    found = policy_world.read_bundle(bundle)
    archive = found.archive()
    with connection.client() as client:
        before = _in_force(client, found.policy.name)
        _check(client.validate_policy(archive), bundle, json)
        old = _bundle_of(before)
        changed = changes(old.policy if old is not None else None, found.policy)
        if not json:
            _show(found, before, changed)
        state = None
        if not dry_run:
            etag = before.policy.etag if before is not None else ""
            state = client.put_policy(archive, etag=etag, shadow=shadow)
    if json:
        print_json(_plain(state, changed))
    elif state is not None:
        console().print(_done(state, shadow), soft_wrap=True)


def _in_force(client: Client, name: str) -> Policy | None:
    """The policy of this name that the server has, with its bundle; None where there is none."""
    import saegis

    try:
        return client.get_policy(name, include_bundle=True)
    except saegis.NotFound:
        return None


def _bundle_of(before: Policy | None) -> Bundle | None:
    from saegis_server.policy.bundle.bundle import Bundle

    return Bundle.from_archive(before.bundle) if before is not None else None


def _check(told: Validation, path: Path, json: bool) -> None:
    """End the command where the server would not take the bundle."""
    from saegis_server.policy.errors import Problem

    if told.valid:
        return
    problems = [Problem(each.message, each.path, each.file, each.line) for each in told.problems]
    if json:
        print_json({"valid": False, "problems": told.problems})
        raise typer.Exit(FAILURE)
    count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
    console().print(problem_table(problems, f"{path}: {count}"))
    raise fail(f"the server does not take {path}", "correct the bundle; nothing was changed")


def _show(found: Bundle, before: Policy | None, changed: tuple[Changed, ...]) -> None:
    policy = found.policy
    was = before.policy.active if before is not None else None
    since = f"{was.revision} (serial {was.serial})" if was is not None else "new"
    console().print(
        Text(f"{policy.name}: {since} -> {policy.revision} (serial {policy.serial})"), soft_wrap=True
    )
    for each in changed:
        console().print(Text(f"  {_SIGNS[each.change]} {each.key}", style=_STYLES[each.change]))
    if not changed:
        console().print(Text("  no rule, allowance, limit or protection changes"))


def _done(state: PolicyState, shadow: bool) -> Text:
    revision = state.shadow if shadow else state.active
    assert revision is not None  # noqa: S101 - a candidate was put
    what = "beside the revision in force: " if shadow else "in force: "
    return Text.assemble(
        (what, "bold green"), f"{revision.name}@{revision.revision}, digest {revision.digest[:12]}"
    )


def _plain(state: PolicyState | None, changed: tuple[Changed, ...]) -> dict[str, Any]:
    return {
        "valid": True,
        "changes": [{"change": each.change.value, "key": each.key} for each in changed],
        "policy": state,
    }
