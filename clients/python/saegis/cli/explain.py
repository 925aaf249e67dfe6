"""The command `saegis policy explain`: what a server decides on a request, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.edits import edit_options, parse_edits, server_search, with_best_features
from saegis.cli.output import USAGE, console, fail, own_command, print_json
from saegis.cli.policy import packed
from saegis.explanation import Explained, ExplainedDenial, explanation

if TYPE_CHECKING:
    from saegis import Edit

EPILOG = """
[bold]Examples[/bold]

saegis policy explain --tenant acme --clamp "Golden Gate Bridge=2max"

saegis policy explain ./my-candidate --clamp 3800=50 --json

[bold]Who decides[/bold]

The policies in force on the server; with a bundle, the server on that bundle. Values are written as with
saegis generate. That a request is denied is an answer, not a failure: the exit code is 0.
"""
_request = partial(typer.Option, rich_help_panel="The request")

Bundle = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="A bundle: its directory, or a .tar or .tar.gz of it.")
]
Tenant = Annotated[
    str, _request(metavar="NAME", help="Who asks. By default 'default' or, of a server, the caller.")
]
ROLE = _request(
    "--role",
    help="In which role. Again for another. By default use and steer or, of a server, the caller's.",
)
Uses = Annotated[
    list[str] | None,
    _request(
        "--use",
        metavar="WORD[=VALUE]",
        help="What it asks for beyond the ordinary, such as text or n=4. Again for another.",
    ),
]


@options.grouped
def explain(
    bundle: Bundle = None,
    tenant: Tenant = "",
    role: Annotated[list[str] | None, ROLE] = None,
    use: Uses = None,
    *,
    edits: options.Edits,
    edit_sae: options.EditSae = "",
    json: options.Json = False,
    connection: Connection,
) -> None:
    """Tell what is decided on a request, by which rules, and why. Nothing is generated."""
    ask(connection, bundle, parsed(edits, edit_sae), tenant, role or (), uses(use or ()), json)


def parsed(edits: options.Edits, sae: str) -> list[Edit]:
    """The edits of the command line; ends the command for a malformed one."""
    with edit_options(f"{own_command()} generate --help shows how edits are written"):
        return parse_edits(edits.by_operation(), sae=sae)


def uses(words: Sequence[str]) -> dict[str, float | None]:
    """The words with their values; ends the command for a value that is no number."""
    values: dict[str, float | None] = {}
    for text in words:
        word, equals, value = text.partition("=")
        try:
            values[word] = float(value) if equals else None
        except ValueError as error:
            raise fail(f"--use {text!r}: {value!r} is no number", f"write {word}=2", USAGE) from error
    return values


def ask(
    connection: Connection,
    bundle: Path | None,
    edits: Sequence[Edit],
    tenant: str,
    roles: Sequence[str],
    uses: Mapping[str, float | None],
    json: bool,
) -> None:
    """Let a server decide, by the policies in force or by a bundle, and print its decision."""
    archive = b"" if bundle is None else packed(bundle)
    with connection.client() as client:
        decision = client.evaluate_policy(
            with_best_features(edits, server_search(client)),
            tenant=tenant,
            roles=list(map(str, roles)),
            bundle=archive,
            uses=uses,
        )
    digest = decision.program_digest
    show(decision, digest, explanation(decision, digest), json)


def show(
    decision: Explained,
    digest: str,
    lines: Sequence[str],
    json: bool,
    would_deny: Sequence[Mapping[str, str]] = (),
) -> None:
    """Print a decision: `lines` for people, all of it as JSON for programs."""
    if json:
        print_json(_plain(decision, digest, lines, would_deny))
        return
    style = "bold green" if decision.allowed else "bold red"
    for number, line in enumerate(lines):
        console().print(Text(line, "" if number else style), soft_wrap=True)


def plain_denial(denial: ExplainedDenial, mode: str = "enforce") -> dict[str, str]:
    """A denial in JSON form."""
    names = ("policy", "rule", "message", "field")
    return {name: str(getattr(denial, name)) for name in names} | {"mode": mode}


def _plain(
    decision: Explained, digest: str, lines: Sequence[str], would_deny: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    names = ("policy", "rule", "action", "mode", "reason", "labels", "conditional")
    return {
        "allowed": decision.allowed,
        "policy_revision": decision.policy_revision,
        "denials": list(map(plain_denial, decision.denials)),
        "would_deny": would_deny,
        "rules": [{name: getattr(rule, name) for name in names} for rule in decision.rules],
        "program_digest": digest,
        "lines": lines,
    }
