"""What the offline commands of `saegis policy` work on: a bundle, and the world in which it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.cli.output import USAGE, fail, own_command
from saegis_server.cli.serve.configuration import reference, room_for_rows, sae_source
from saegis_server.cli.serve.options import to_path

if TYPE_CHECKING:
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.decide.compiled import CompiledPolicy
    from saegis_server.policy.decide.world import World
    from saegis_server.sae.catalog import LoadedSAE

REFERENCE_NAME = "saegis/polyglot"
_option = partial(typer.Option, rich_help_panel="What the policy is for")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a policy is for when no server is asked, as a group of options."""

    sae: Annotated[
        str | None,
        _option(
            metavar="[ID=]PATH_OR_HUB_ID",
            help="The SAE that the policy is for, as of saegis serve; by default the reference model's.",
        ),
    ] = None
    site: Annotated[
        list[str] | None,
        _option(
            metavar="SITE",
            help="Where the SAE belongs, by default where its file says; further ones can be steered too.",
        ),
    ] = None
    name: Annotated[
        str | None, _option(metavar="NAME", help="What the model is called, as matches name it.")
    ] = None
    directions: Annotated[
        list[Path] | None,
        _option(
            parser=to_path,
            metavar="FILE_OR_DIR",
            help="Directions that the server ships, as it is started with them. Again for another.",
        ),
    ] = None
    rows: Annotated[
        list[str] | None,
        _option(
            metavar="KIND=NUMBER",
            help="Room for rows, as the server is started with it. Again for another kind.",
        ),
    ] = None

    def world(self) -> World:
        """The world of a server with one SAE; ends the command if the SAE, a site or a direction is wrong."""
        from saegis_server.directions.files import DirectionFileError
        from saegis_server.directions.folder import read_shipped
        from saegis_server.policy.decide.world import World
        from saegis_server.sae.catalog import Catalog
        from saegis_server.sae.errors import SAEFileError
        from saegis_server.steering.site import Site, SiteError, Widths, forward_order
        from saegis_server.steering.table import Capacity

        name, sites = self.name, self.site or []
        source = {} if self.sae is None else sae_source(self.sae)
        if self.sae is None:
            source, name = reference()[1], name or REFERENCE_NAME
        try:
            loaded = _load(source["path"], source.get("id"), sites[0] if sites else None)
            steered = sorted({loaded.site, *map(Site.parse, sites)}, key=forward_order)
            widths = Widths(loaded.sae.width)
            shipped = read_shipped(self.directions or (), widths, steered)
        except SAEFileError as error:
            raise fail(
                f"the SAE cannot be read: {error}",
                f"{own_command()} sae info shows what the files are",
                USAGE,
            ) from error
        except DirectionFileError as error:
            raise fail(f"a direction cannot be read: {error}", "name it as serve does", USAGE) from error
        except SiteError as error:
            raise fail(str(error), "sites are written layers.NUMBER.resid_post", USAGE) from error
        return World(
            model=name or "model",
            sites=tuple(steered),
            widths=widths,
            catalog=Catalog([loaded]),
            capacity=Capacity(**room_for_rows(self.rows or [])),
            named=name is not None,
            directions=tuple(shipped),
        )

    def compiled(self, path: Path, bundle: Bundle) -> CompiledPolicy:
        """The bundle compiled in this world; ends the command with every problem if it does not fit."""
        from saegis_server.policy.decide.compiled import compile_policy
        from saegis_server.policy.errors import CompileError

        world = self.world()
        try:
            return compile_policy(bundle, world)
        except CompileError as error:
            problems = map(str, error.problems)
            hint = "name with --sae, --site and --name what the policy is for"
            raise fail(f"{path} does not fit what it is for", hint, details=problems) from error


def read_bundle(path: Path) -> Bundle:
    """The bundle at `path`; ends the command with every problem if it cannot be read."""
    from saegis_server.policy.bundle.bundle import Bundle
    from saegis_server.policy.errors import PolicyError

    try:
        return Bundle.read(path)
    except PolicyError as error:
        hint = f"{own_command()} policy validate shows more"
        raise fail(f"{path} is no bundle", hint, details=map(str, error.problems)) from error


def _load(path: str, own_id: str | None, site: str | None) -> LoadedSAE:
    """The SAE with its labels at its site. Raises SAEFileError and SiteError."""
    from saegis_server.sae.catalog import LoadedSAE
    from saegis_server.sae.errors import SAEFileError
    from saegis_server.sae.files import load_sae, resolve_sae
    from saegis_server.sae.labels import Labels
    from saegis_server.steering.site import Site

    found = resolve_sae(path)
    folder = found.folder
    sae = load_sae(folder, name=own_id, release=found.release)
    at = site or sae.hook_name
    if at is None:
        raise SAEFileError(folder, "its files state no hook_name; say with --site where it belongs")
    return LoadedSAE(sae, Site.parse(at), Labels.load(folder, sae.features))
