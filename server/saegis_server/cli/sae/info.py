"""The command `saegis sae info`: what an SAE's files are."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import console, print_json
from saegis_server.cli.sae.common import Spec, described, read

EPILOG = """
[bold]Examples[/bold]

saegis sae info ./my-sae

saegis sae info gpt2-small/8-res-jb --json

saegis sae info ./Llama-3.1-8B-Instruct-SAE-l19.pth

A pickle is opened in a process of its own, in which torch reads tensors, numbers and texts alone.
"""


def info(sae: Spec, *, json: options.Json = False) -> None:
    """Show what an SAE is: its form, its size, and what its files say of it."""
    plain = described(read(sae))
    if json:
        print_json(plain)
        return
    form = plain["architecture"] if plain["k"] is None else f"{plain['architecture']} of {plain['k']}"
    place, written = plain["hook_name"] or "not stated", plain["hook_name_out"]
    place += (f" to {written}" if written else "") + (f" = {plain['site']}" if plain["site"] else "")
    rows = {
        "form": f"{form}, norm {plain['norm']}" + (", centred" if plain["centred"] else ""),
        "size": f"{plain['features']} features of width {plain['width']}, {plain['bytes'] / 2**20:.1f} MiB",
        "place": place,
        "model": plain["model_name"] or "not stated",
        "stated": f"FVU {_number(plain['stated_fvu'])}, L0 {_number(plain['stated_l0'])}",
        "digest": plain["digest"],
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(str(value), overflow="fold"))
    console().print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
