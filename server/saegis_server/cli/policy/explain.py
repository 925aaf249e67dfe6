"""The command `saegis policy explain`: what a bundle or a server decides on a request, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.base import SERVER_VARIABLE
from saegis.cli import explain as remote
from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.edits import with_best_features
from saegis.cli.output import USAGE, fail
from saegis_server.cli.policy.world import Subject, read_bundle
from saegis_server.rpc.auth.roles import Role

if TYPE_CHECKING:
    import saegis
    from saegis.cli.edits import Labelled, Search
    from saegis_server.policy.decide.compiled import CompiledPolicy
    from saegis_server.policy.decide.decision import Decision, RequestFacts
    from saegis_server.sae.catalog import Catalog

EPILOG = """
[bold]Examples[/bold]

saegis policy explain ./my-policy

saegis policy explain ./my-policy --tenant acme --role use --role steer --clamp 3800=50 --ban 23=2

saegis policy explain --server 127.0.0.1:50051 --tenant acme --clamp "Golden Gate Bridge=2max"

saegis policy explain ./my-candidate --server 127.0.0.1:50051 --clamp 3800=50 --json

[bold]Who decides[/bold]

With a bundle and no --server that bundle by itself, offline; with both, the server on that bundle. Without a
bundle the policies in force on the server, by default that of SAEGIS_SERVER or 127.0.0.1:50051. Values are
written as with saegis generate. That a request is denied is an answer, not a failure: the exit code is 0.
"""

Server = Annotated[
    str | None,
    typer.Option(
        metavar="TARGET",
        help="Let this server decide: host:port, or unix:/path.",
        rich_help_panel="Connection",
    ),
]


@options.grouped
def explain(
    bundle: remote.Bundle = None,
    tenant: remote.Tenant = "",
    role: Annotated[list[Role] | None, remote.ROLE] = None,
    use: remote.Uses = None,
    *,
    edits: options.Edits,
    edit_sae: options.EditSae = "",
    subject: Subject,
    json: options.Json = False,
    server: Server = None,
    connection: Connection,
) -> None:
    """Tell what is decided on a request, by which rules, and why. Nothing is generated."""
    steering, uses = remote.parsed(edits, edit_sae), _uses(use or ())
    if bundle is None or server is not None:
        if server is None and (named := os.environ.get(SERVER_VARIABLE)):
            connection = replace(connection, server=named)
        remote.ask(connection, bundle, steering, tenant, role or (), uses, json)
        return
    compiled = subject.compiled(bundle, read_bundle(bundle))
    decision = _decided(compiled, steering, uses, tenant or "default", role or (Role.USE, Role.STEER))
    _show(decision, json)


def _uses(words: Sequence[str]) -> dict[str, float | None]:
    """The words with their values; ends the command for a malformed one."""
    from saegis_server.policy.decide.uses import ORDINARY, Use

    values = remote.uses(words)
    for word, value in values.items():
        if word not in list(Use) or (word in ORDINARY) != (value is not None):
            hint = ", ".join(f"{use.value}=VALUE" if use in ORDINARY else use.value for use in Use)
            raise fail(f"--use {word!r} is no use", f"write {hint}", USAGE)
    return values


def _decided(
    compiled: CompiledPolicy,
    edits: Sequence[saegis.Edit],
    uses: Mapping[str, float | None],
    tenant: str,
    roles: Sequence[str],
) -> Decision:
    """What a policy alone decides; ends the command for edits that no request could have."""
    from saegis_server.policy.decide.decide import PolicySet
    from saegis_server.policy.decide.decision import RequestFacts
    from saegis_server.policy.decide.uses import Use, beyond

    all_uses = (beyond(Use(word), value, "") for word, value in uses.items())
    request_uses = tuple(use for use in all_uses if use is not None)
    request = RequestFacts(tenant, frozenset(roles), compiled.world.model, uses=request_uses)
    return PolicySet((compiled,)).decide(_with_edits(request, edits, compiled))


def _with_edits(
    request: RequestFacts, edits: Sequence[saegis.Edit], compiled: CompiledPolicy
) -> RequestFacts:
    """The request with edits, resolved as on a server."""
    from saegis.messages import steering_message
    from saegis_server.directions.store import Shelf
    from saegis_server.engine.api import FieldError
    from saegis_server.rpc.wire.programs import request_steering
    from saegis_server.rpc.wire.targets import Targets
    from saegis_server.sae.catalog import CatalogError

    world = compiled.world
    edits = with_best_features(edits, catalog_search(world.catalog))
    targets = Targets(world.sites, world.catalog, world.widths, Shelf.of_operator(world.directions))
    try:
        steering = request_steering(steering_message(edits), targets, world.capacity)
        steering.require_room(world.capacity)
    except (FieldError, CatalogError) as error:
        raise fail(str(error), "no server would take this edit, whatever its policies", USAGE) from error
    except ValueError as error:
        raise fail(str(error), "see the command's --help", USAGE) from error
    return replace(request, edits=steering.edits)


def catalog_search(catalog: Catalog) -> Search:
    """A search in a local catalog."""
    from saegis_server.rpc.services.feature_search import Found

    def search(words: str, sae: str) -> Sequence[Labelled]:
        found = Found([entry for entry in catalog.entries if sae in ("", entry.id)], words)
        return [
            _LabelledHere(hit.loaded.id, hit.index, hit.label.label, hit.label.precision)
            for hit in found.page(0, len(found))
            if hit.label is not None
        ]

    return search


@dataclass(frozen=True, slots=True)
class _LabelledHere:
    sae: str
    index: int
    label: str
    precision: float | None


def _show(decision: Decision, json: bool) -> None:
    from saegis_server.policy.decide.explain import explain as explained

    digest = decision.program.digest if decision.allowed else ""
    would_deny = [remote.plain_denial(denial, str(denial.mode)) for denial in decision.would_deny]
    remote.show(decision, digest, explained(decision), json, would_deny)
