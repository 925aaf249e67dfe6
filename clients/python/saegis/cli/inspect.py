"""The command `saegis inspect`: the strongest features of each token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection, connecting
from saegis.cli.output import console, print_json
from saegis.cli.streams import read_input

if TYPE_CHECKING:
    from saegis import Inspection

EPILOG = """
[bold]Examples[/bold]

saegis inspect "The bridge stands in the fog."

saegis inspect "Мост стоит в тумане." --top 3

saegis inspect --chat "How do I make bread?" --json
"""


@connecting
def inspect(
    text: Annotated[str, typer.Argument(help="The text to read; - reads it from standard input.")],
    chat: Annotated[bool, typer.Option("--chat", help="The text is a user's message.")] = False,
    top: Annotated[int, typer.Option(help="How many features to show for each token.")] = 5,
    sae: options.Sae = "",
    site: Annotated[str, typer.Option(metavar="SITE", help="Where to read; by default the SAE's.")] = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show the strongest features of each token, in feature units, with their labels."""
    read = read_input() if text == "-" else text
    with connection.client() as client:
        found = (
            client.inspect(messages=[{"role": "user", "content": read}], sae=sae, site=site, top_k=top)
            if chat
            else client.inspect(read, sae=sae, site=site, top_k=top)
        )
    if json:
        print_json(found)
    else:
        console().print(inspection_table(found))


def inspection_table(found: Inspection) -> Table:
    """One row for each token: its text and its features, strongest first."""
    table = Table(title=f"{found.sae} at {found.site}", title_justify="left", title_style="bold")
    table.add_column("token", no_wrap=True)
    table.add_column("strongest features: index, activation, label")
    for token in found:
        lines = (
            f"{each.index:>6} {each.activation:8.2f}  {each.label or '(no label)'}" for each in token.features
        )
        table.add_row(Text(repr(token.text)), Text("\n".join(lines) or "(none)"))
    return table
