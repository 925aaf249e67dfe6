"""The command `saegis policy explain`: what a bundle or a server decides on a request, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from saegis_server.cli import options
from saegis_server.cli.client.connection import SERVER_VARIABLE, Connection, connecting
from saegis_server.cli.client.edits import EditSyntaxError, parse_edits
from saegis_server.cli.client.labels import in_catalog, on_server, settled
from saegis_server.cli.output import USAGE, console, fail, print_json
from saegis_server.cli.policy import world as policy_world
from saegis_server.rpc.auth.roles import Role

if TYPE_CHECKING:
    import saegis
    from saegis_server.policy.decide.compiled import CompiledPolicy
    from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts

EPILOG = """
[bold]Examples[/bold]

saegis policy explain ./my-policy

saegis policy explain ./my-policy --tenant acme --role use --role steer --clamp 3385=50 --ban 3815=2

saegis policy explain --server 127.0.0.1:50051 --tenant acme --clamp "Golden Gate Bridge=2max"

saegis policy explain ./my-candidate --server 127.0.0.1:50051 --clamp 3385=50 --json

[bold]Who decides[/bold]

With a bundle and no --server that bundle by itself, offline; with both, the server on that bundle. Without a
bundle the policies in force on the server, by default that of SAEGIS_SERVER or 127.0.0.1:50051. Values are
written as with saegis generate. That a request is denied is an answer, not a failure: the exit code is 0.
"""
_REQUEST = "The request"

Bundle = Annotated[
    Path | None, typer.Argument(metavar="BUNDLE", help="A bundle: its directory, or a .tar or .tar.gz of it.")
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET",
        help="Let this server decide: host:port, or unix:/path.",
        rich_help_panel="Connection",
    ),
]
Tenant = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Who asks. By default 'default' or, of a server, the caller.",
        rich_help_panel=_REQUEST,
    ),
]
Roles = Annotated[
    list[Role] | None,
    typer.Option(
        "--role",
        help="In which role. Again for another. By default use and steer or, of a server, the caller's.",
        rich_help_panel=_REQUEST,
    ),
]
Uses = Annotated[
    list[str] | None,
    typer.Option(
        "--use",
        metavar="WORD[=VALUE]",
        help="What it asks for beyond the ordinary, such as text or n=4. Again for another.",
        rich_help_panel=_REQUEST,
    ),
]


@connecting
def explain(
    bundle: Bundle = None,
    tenant: Tenant = "",
    role: Roles = None,
    use: Uses = None,
    clamp: options.Clamp = None,
    scale: options.Scale = None,
    add: options.Add = None,
    cap: options.Cap = None,
    ban: options.Ban = None,
    edit_sae: options.EditSae = "",
    sae: policy_world.Sae = None,
    site: policy_world.Sites = None,
    name: policy_world.ModelName = None,
    rows: policy_world.Rows = None,
    json: options.Json = False,
    server: Server = None,
    *,
    connection: Connection,
) -> None:
    """Tell what is decided on a request, by which rules, and why. Nothing is generated."""
    written = (("clamp", clamp), ("scale", scale), ("add", add), ("cap", cap), ("ban", ban))
    try:
        edits = parse_edits(written, sae=edit_sae)
    except EditSyntaxError as error:
        raise fail(str(error), "saegis generate --help shows how edits are written", USAGE) from error
    uses, digest = _uses(use or ()), ""
    if bundle is not None and server is None:
        read = policy_world.read_bundle(bundle)
        compiled = policy_world.compiled(bundle, read, policy_world.offline_world(sae, site, name, rows))
        decision = _decided(compiled, edits, uses, tenant or "default", role or (Role.USE, Role.STEER))
        digest = decision.program.digest if decision.allowed else ""
    else:
        if server is None and (named := os.environ.get(SERVER_VARIABLE)):
            connection = replace(connection, server=named)
        archive = b"" if bundle is None else policy_world.read_bundle(bundle).archive()
        with connection.client() as client:
            edits = settled(edits, on_server(client))
            told = client.evaluate_policy(
                edits, tenant=tenant, roles=list(map(str, role or ())), bundle=archive, uses=uses
            )
        decision, digest = _of_server(told), told.program_digest
    _tell(decision, digest, json)


def _uses(written: Sequence[str]) -> dict[str, float | None]:
    """The words with their values; ends the command for one that is not written as it should be."""
    from saegis_server.policy.decide.uses import ORDINARY, Use

    found: dict[str, float | None] = {}
    for text in written:
        word, _, value = text.partition("=")
        if word not in list(Use) or (word in ORDINARY) != bool(value):
            hint = ", ".join(f"{use.value}=VALUE" if use in ORDINARY else use.value for use in Use)
            raise fail(f"--use {text!r} is no use", f"write {hint}", USAGE)
        try:
            found[word] = float(value) if value else None
        except ValueError as error:
            raise fail(f"--use {text!r}: {value!r} is no number", f"write {word}=2", USAGE) from error
    return found


def _decided(
    compiled: CompiledPolicy,
    edits: Sequence[saegis.Edit],
    uses: Mapping[str, float | None],
    tenant: str,
    roles: Sequence[str],
) -> Decision:
    """What a policy by itself decides; ends the command for edits that no request could ask for."""
    from saegis_server.policy.decide.decide import PolicySet
    from saegis_server.policy.decide.decision import RequestFacts
    from saegis_server.policy.decide.uses import Use, beyond

    beyonds = (beyond(Use(word), value, "") for word, value in uses.items())
    asked = tuple(use for use in beyonds if use is not None)
    request = RequestFacts(tenant, frozenset(roles), compiled.world.model, uses=asked)
    return PolicySet((compiled,)).decide(_with_edits(request, edits, compiled))


def _with_edits(
    request: RequestFacts, edits: Sequence[saegis.Edit], compiled: CompiledPolicy
) -> RequestFacts:
    """The request with edits, resolved as a server resolves them."""
    from saegis.requests import steering_message
    from saegis_server.engine.requests import FieldError
    from saegis_server.rpc.wire.programs import request_steering
    from saegis_server.rpc.wire.targets import Targets
    from saegis_server.sae.catalog import CatalogError

    world = compiled.world
    edits = settled(edits, in_catalog(world.catalog))
    targets = Targets(world.sites, world.catalog, world.width)
    try:
        steering = request_steering(steering_message(edits), targets, world.capacity)
    except (FieldError, CatalogError) as error:
        raise fail(str(error), "no server would take this edit, whatever its policies", USAGE) from error
    except ValueError as error:
        raise fail(str(error), "see the command's --help", USAGE) from error
    return replace(request, edits=steering.edits)


def _of_server(told: saegis.Decision) -> Decision:
    """A server's answer as a decision; which program comes of it, a server tells by its digest alone."""
    from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial
    from saegis_server.policy.schema.policy import Mode, Transparency

    return Decision(
        allowed=told.allowed,
        policy_revision=told.policy_revision,
        denials=tuple(Denial(each.policy, each.rule, each.message, each.field) for each in told.denials),
        rules=tuple(
            AppliedRule(
                policy=each.policy,
                rule=each.rule,
                action=each.action,
                mode=Mode(each.mode.value),
                transparency=Transparency.LABELS,
                reason=each.reason,
                labels=each.labels,
                conditional=each.conditional,
            )
            for each in told.rules
        ),
    )


def _tell(decision: Decision, digest: str, json: bool) -> None:
    from saegis_server.policy.decide.explain import explain as explained

    lines = explained(decision, digest)
    if json:
        print_json(_plain(decision, digest, lines))
        return
    style = "bold green" if decision.allowed else "bold red"
    for number, line in enumerate(lines):
        console().print(Text(line, "" if number else style), soft_wrap=True)


def _denial(denial: Denial) -> dict[str, str]:
    names = ("policy", "rule", "message", "field", "mode")
    return {name: str(getattr(denial, name)) for name in names}


def _plain(decision: Decision, digest: str, lines: list[str]) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "policy_revision": decision.policy_revision,
        "denials": list(map(_denial, decision.denials)),
        "would_deny": list(map(_denial, decision.would_deny)),
        "rules": [
            {
                "policy": rule.policy,
                "rule": rule.rule,
                "action": rule.action,
                "mode": rule.mode.value,
                "reason": rule.reason,
                "labels": list(rule.labels),
                "conditional": rule.conditional,
            }
            for rule in decision.rules
        ],
        "program_digest": digest,
        "lines": lines,
    }
