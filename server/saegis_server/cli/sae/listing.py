"""The command `saegis sae list`: the SAEs that have a name, and whether they are read."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, console, fail, print_json

if TYPE_CHECKING:
    from saegis_server.sae.releases import Entry

EPILOG = """
[bold]Examples[/bold]

saegis sae list gemma-2-2b

saegis sae list gemma-scope-2b-pt-res-canonical

Nothing is asked of the network: the names are those of SAELens's own table, which its package brings along.
"""


def show(
    text: Annotated[
        str,
        typer.Argument(
            metavar="[TEXT]", help="Part of a release's name or of a model's.", show_default=False
        ),
    ] = "",
    *,
    json: options.Json = False,
) -> None:
    """List the releases of SAELens's table, or the SAEs of one, and whether they are read."""
    from saegis_server.sae.coverage import coverage
    from saegis_server.sae.releases import release, release_names

    if not release_names():
        raise fail("the names are those of SAELens", "install them with: pip install sae-lens", FAILURE)
    if text in release_names():
        entries = release(text)
        if json:
            print_json([_plain(entry) for entry in entries])
            return
        table = Table("SAE", "Neuronpedia", "")
        for entry in entries:
            found = coverage(entry)
            table.add_row(Text(entry.said.name), Text(entry.neuronpedia or ""), Text(str(found.standing)))
        console().print(table)
        return
    names = [name for name in release_names() if _matches(name, text)]
    if not names:
        raise fail(f"no release and no model is called like {text}", code=FAILURE)
    if json:
        print_json([_plain(entry) for name in names for entry in release(name)])
        return
    table = Table("release", "model", "SAEs", "")
    for name in names:
        entries = release(name)
        counts = Counter(str(coverage(entry).standing) for entry in entries)
        told = "; ".join(key if len(counts) == 1 else f"{count} {key}" for key, count in counts.items())
        table.add_row(Text(name), Text(entries[0].model), str(len(entries)), Text(told))
    console().print(table)


def _matches(name: str, text: str) -> bool:
    from saegis_server.sae.releases import release

    return text.lower() in name.lower() or any(
        text.lower() in entry.model.lower() for entry in release(name)[:1]
    )


def _plain(entry: Entry) -> dict[str, object]:
    from saegis_server.sae.coverage import coverage

    found = coverage(entry)
    return {
        "name": entry.said.name,
        "neuronpedia": entry.neuronpedia,
        "model": entry.model,
        "repository": entry.repo,
        "path": entry.path,
        "standing": str(found.standing),
        "reason": found.reason,
    }
