"""What `saegis policy` judges a bundle by where no server is asked: an SAE, its site, a model's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli.output import USAGE, fail
from saegis_server.cli.serve.command import reference, room_for_rows

if TYPE_CHECKING:
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.decide.compiled import CompiledPolicy
    from saegis_server.policy.decide.world import World
    from saegis_server.sae.catalog import LoadedSAE

REFERENCE_NAME = "saegis/polyglot"
_PANEL = "What the policy is for"

Sae = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_HUB_ID",
        help="The SAE that the policy is for; by default the reference model's.",
        rich_help_panel=_PANEL,
    ),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--site",
        metavar="SITE",
        help="Where the SAE belongs, by default where its file says; further ones can be steered too.",
        rich_help_panel=_PANEL,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What the model is called, as matches name it.",
        rich_help_panel=_PANEL,
    ),
]


Rows = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=NUMBER",
        help="Room for rows, as the server is started with it. Again for another kind.",
        rich_help_panel=_PANEL,
    ),
]


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`; ends the command, with every problem, where it cannot be read."""
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.errors import PolicyError

    try:
        return Bundle.read(path)
    except PolicyError as error:
        problems = map(str, error.problems)
        raise fail(f"{path} is no bundle", "saegis policy validate shows more", details=problems) from error


def compiled(path: Path, bundle: Bundle, world: World) -> CompiledPolicy:
    """The bundle in a world; ends the command, with every problem, where it does not fit."""
    from saegis_server.policy.decide.compiled import compile_policy
    from saegis_server.policy.errors import CompileError

    try:
        return compile_policy(bundle, world)
    except CompileError as error:
        problems = map(str, error.problems)
        hint = "name with --sae, --site and --name what the policy is for"
        raise fail(f"{path} does not fit what it is for", hint, details=problems) from error


def offline_world(
    sae: str | None, sites: Sequence[str] | None, name: str | None, rows: list[str] | None = None
) -> World:
    """A server of one SAE, as far as a policy is concerned; ends the command where there is none.

    sites: the first is the SAE's, as with `saegis serve`; rows likewise.
    """
    from saegis_server.policy.decide.world import World
    from saegis_server.sae.catalog import Catalog
    from saegis_server.sae.errors import SAEFileError
    from saegis_server.steering.site import Site, SiteError, forward_order
    from saegis_server.steering.table import Capacity

    own_id, named = None, name is not None or sae is None
    if sae is None:
        source = reference()[1]
        sae, own_id, name = str(source["path"]), str(source["id"]), name or REFERENCE_NAME
    try:
        loaded = _load(sae, own_id, sites[0] if sites else None)
        steered = {loaded.site, *map(Site.parse, sites or ())}
    except SAEFileError as error:
        raise fail(
            f"the SAE cannot be read: {error}", "give --sae a directory in SAELens's layout", USAGE
        ) from error
    except SiteError as error:
        raise fail(str(error), "sites are written layers.NUMBER.resid_post", USAGE) from error
    return World(
        model=name or "model",
        sites=tuple(sorted(steered, key=forward_order)),
        width=loaded.sae.width,
        catalog=Catalog([loaded]),
        capacity=Capacity(**room_for_rows(rows or [])),
        named=named,
    )


def _load(path: str, own_id: str | None, site: str | None) -> LoadedSAE:
    """The SAE with its labels at its site. Raises SAEFileError and SiteError."""
    from saegis_server.sae.catalog import LoadedSAE
    from saegis_server.sae.errors import SAEFileError
    from saegis_server.sae.files import load_sae, resolve_sae
    from saegis_server.sae.labels import Labels
    from saegis_server.steering.site import Site

    folder = resolve_sae(path)
    sae = load_sae(folder, name=own_id)
    at = site or sae.hook_name
    if at is None:
        raise SAEFileError(folder, "its files state no hook_name; say with --site where it belongs")
    return LoadedSAE(sae, Site.parse(at), Labels.load(folder, sae.features))
