"""The command `saegis sae check`: whether a server would take an SAE, told without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, console, fail, print_json
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.cli.sae.common import Spec, described
from saegis_server.policy.errors import Unmatched

if TYPE_CHECKING:
    from saegis_server.rpc.server.sae_sources import PlacedSAE

EPILOG = """
[bold]Examples[/bold]

saegis sae check ./my-sae

saegis sae check gpt2-small/8-res-jb --model openai-community/gpt2

saegis sae check ./my-sae --model ./my-model --site layers.3.resid_post --json

Without --model the files alone are checked: their layout, shapes and numbers. With it also that they name
this model and place, and how well they reconstruct its activations there. The exit code is 0 if all holds.
"""


def check(
    sae: Spec,
    *,
    model: Annotated[
        str | None, typer.Option(metavar="PATH_OR_HUB_ID", help="The model that it is to be served with.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="SITE", help="Where it belongs, by default where its files say.")
    ] = None,
    unmatched_saes: Annotated[
        Unmatched, typer.Option(help="As saegis serve: what files that name another model or place are.")
    ] = Unmatched.REFUSE,
    dtype: Dtype = DtypeName.AUTO,
    device: Device = "cpu",
    json: options.Json = False,
) -> None:
    """Check an SAE as a server would at its start, and tell what is wrong with it."""
    from saegis_server.cli.serve.start_errors import start_failed

    try:
        plain = _files(sae) if model is None else _fit(sae, model, site, unmatched_saes, dtype.value, device)
    except Exception as error:
        failure = start_failed(error)
        if failure is None:
            raise
        if json:
            print_json({"valid": False, "problem": failure[0]})
            raise typer.Exit(FAILURE) from error
        raise fail(*failure) from error
    if json:
        print_json({"valid": True, **plain})
        return
    told = f"{plain['features']} features of width {plain['width']}"
    if model is not None:
        told += f" at {plain['site']}: FVU {plain['fvu']:.3g}, L0 {plain['l0']:.3g}"
    console().print(Text.assemble(("valid: ", "bold green"), told), soft_wrap=True)


def _files(spec: str) -> dict[str, Any]:
    from saegis_server.sae.files import load_sae, resolve_sae

    found = resolve_sae(spec)
    return described(load_sae(found.folder, release=found.release))


def _fit(
    spec: str, model: str, site: str | None, unmatched: Unmatched, dtype: str, device: str
) -> dict[str, Any]:
    """What the SAE is, with its site and its reconstruction there. Raises what a start raises."""
    from saegis_server.engine.sites import widths_of
    from saegis_server.engine.torch.loading import load_model
    from saegis_server.rpc.server.config import SAESource
    from saegis_server.rpc.server.loading import fitted
    from saegis_server.rpc.server.sae_sources import read_sae

    loaded = load_model(model, dtype, device)
    source = SAESource(path=spec, site=site)
    placed: PlacedSAE = read_sae(source, widths_of(loaded.model))
    fits = fitted(placed, loaded, unmatched)
    measured = fits.measured
    told = {} if measured is None else {"fvu": measured.fvu, "l0": measured.l0}
    return {**described(fits.sae), "site": str(fits.site), **told}
