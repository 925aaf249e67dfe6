"""The command `saegis sae convert`: an SAE in any layout that is read, written as a server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, USAGE, console, fail, own_command, print_json
from saegis_server.cli.sae.common import Spec, described, read

EPILOG = """
[bold]Examples[/bold]

saegis sae convert ./ae.pt ./converted

saegis sae convert Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth ./goodfire

saegis sae convert ./7.pt ./openai-7 --site layers.7.resid_post --name gpt2

The folder gets SAELens's layout: cfg.json and sae_weights.safetensors, in float32. It must not exist yet.
"""


def convert(
    sae: Spec,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where it is written.", show_default=False)],
    *,
    site: Annotated[
        str | None,
        typer.Option(metavar="SITE", help="Where it reads, if its files do not say so."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the model is called that it was trained on, if its files do not say so.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Convert an SAE into the layout that a server reads, and read it again to be sure."""
    from dataclasses import replace

    import torch

    from saegis_server.sae.files import load_sae
    from saegis_server.sae.formats.saelens import save_sae
    from saegis_server.steering.site import Site, SiteError

    if out.exists():
        raise fail(f"{out} exists already", "give the name of a new folder", USAGE)
    found = read(sae)
    try:
        place = None if site is None else Site.parse(site)
    except SiteError as error:
        raise fail(str(error), "sites are written layers.NUMBER.resid_post", USAGE) from error
    if place is not None:
        if (place.written_at == place) != (found.hook_name_out is None):
            raise fail(
                f"{sae} cannot be at {place}", "only transcoders are at layers.NUMBER.mlp_in_to_out", USAGE
            )
        found = replace(found, hook_name=str(place.read_at))
        if found.hook_name_out is not None:
            found = replace(found, hook_name_out=str(place.written_at))
    found = replace(found, model_name=name or found.model_name)
    try:
        save_sae(found, out)
    except OSError as error:
        raise fail(f"{out} cannot be written: {error}", code=FAILURE) from error
    except ValueError as error:
        raise fail(str(error), "a server takes its files as they are", FAILURE) from error
    again = load_sae(out)
    if any(not torch.equal(tensor, again.tensors()[key]) for key, tensor in found.tensors().items()):
        raise fail(f"{out} does not hold what was written: the disk may be bad", code=FAILURE)
    if json:
        print_json(described(again))
        return
    console().print(Text(f"{out}: {again.features} features of width {again.width}"), soft_wrap=True)
    told = "" if again.hook_name else " --site layers.NUMBER.resid_post"
    console().print(
        Text(f"serve it with: {own_command()} serve --model ... --sae {out}{told}"), soft_wrap=True
    )
