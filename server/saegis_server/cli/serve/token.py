"""The command `saegis token new`: makes a bearer token and its entry in a file of identities."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from typing import Annotated

import typer

from saegis.cli import options
from saegis.cli.output import USAGE, fail, notes, print_json
from saegis_server.rpc.auth.roles import Role

app = typer.Typer(no_args_is_help=True, help="Make tokens for those who may call a server.")

NEW_EPILOG = """
[bold]Examples[/bold]

saegis token new --principal alice --tenant research --role use --role steer > alice.token

saegis token new --principal operator --role operate --role administer --json

[bold]The file of identities[/bold]

The token goes to standard output and is kept nowhere; the entry goes to standard error. It belongs into the
file that saegis serve is given as its identities:

apiVersion: saegis.dev/v1
kind: Identities
principals:
  - name: "alice"
    tenant: "research"
    roles: \\[use, steer]
    token_sha256: "..."

An entry may have a list of digests, and instead of tokens the names of client certificates (certificate). The
server reads the file again when it changes: a token whose digest is gone no longer works.

Callers put the token into SAEGIS_TOKEN, or into a file that they name as their token file.
"""


@app.callback()
def _root() -> None:
    pass


def new(
    principal: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What logs and records call the principal; by default the digest's start."
        ),
    ] = "",
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Whose policies concern it.")] = "default",
    role: Annotated[
        list[Role] | None, typer.Option(help="What it may do; by default use. Again for another.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a token for a principal, told once, and its entry in a file of identities."""
    from pydantic import ValidationError

    from saegis_server.rpc.auth.principals import Principal, new_token, token_digest

    token = new_token()
    digest = token_digest(token)
    roles = sorted(set(role or (Role.USE,)))
    entry = {
        "name": principal or f"principal-{digest[:8]}",
        "tenant": tenant,
        "roles": list(map(str, roles)),
        "token_sha256": digest,
    }
    try:
        Principal.model_validate(entry)
    except ValidationError as error:
        option = {"name": "--principal", "tenant": "--tenant"}
        wrong = [option[str(problem["loc"][0])] for problem in error.errors()]
        details = [f"{name} must be letters, digits and . _ @ : / + -" for name in wrong]
        raise fail("the principal cannot be named so", code=USAGE, details=details) from error
    if json:
        print_json({"token": token, "principal": entry})
        return
    print(token, flush=True)
    notes().print(_as_yaml(entry), soft_wrap=True, markup=False)


def _as_yaml(entry: Mapping[str, object]) -> str:
    """An entry of a file of identities, as YAML. JSON's strings and lists are valid YAML."""
    first, *others = (f"{key}: {dumps(value)}" for key, value in entry.items())
    return "\n    ".join((f"  - {first}", *others))


app.command(epilog=NEW_EPILOG)(new)
