"""The commands `saegis features search | contrast | show`: find features and see what is known of them.

The others of `saegis features` come with the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection, connecting
from saegis.cli.edits import EditSyntaxError, parse_target
from saegis.cli.family import Family
from saegis.cli.labels import on_server, settled_target
from saegis.cli.output import USAGE, console, fail, notes, print_json, shares
from saegis.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Contrast, FeatureInfo


class _Features(Family):
    """The commands `saegis features ...`."""

    names = ("search", "contrast", "show", "label", "choose")


app = typer.Typer(
    cls=_Features, no_args_is_help=True, help="Find features, label them, and choose those for a ban."
)

SEARCH_EPILOG = """
[bold]Examples[/bold]

saegis features search "golden gate"

saegis features search harmful --top 50 --json
"""
CONTRAST_EPILOG = """
[bold]Examples[/bold]

saegis features contrast --with "The bridge is red." --without "The cat drinks milk."

saegis features contrast --with-file harmful.txt --without-file benign.txt --top 30

Files hold one text a line. The score is the share of texts with the feature less that of the others.
"""
SHOW_EPILOG = """
[bold]Examples[/bold]

saegis features show 3385

saegis features show "Golden Gate Bridge" --json
"""


@app.command(epilog=SEARCH_EPILOG)
@connecting
def search(
    words: Annotated[str, typer.Argument(help="Words of the label; none lists every labelled one.")] = "",
    top: Annotated[int, typer.Option(help="How many features to show, at most.", min=1)] = 20,
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Find features by words of their labels, best first."""
    found: list[FeatureInfo] = []
    total, page_token = 0, ""
    with connection.client() as client:
        while len(found) < top:
            size = min(100, top - len(found))
            page = client.search_features(words, sae=sae, page_size=size, page_token=page_token)
            found += page.features
            total, page_token = page.total_size, page.next_page_token
            if not page_token:
                break
    if json:
        print_json({"features": found, "total_size": total})
        return
    if not found:
        notes().print(f"no label matches {words!r}", markup=False)
        return
    console().print(features_table(found, f"{len(found)} of {total} features"))


@app.command(epilog=CONTRAST_EPILOG)
@connecting
def contrast(
    with_texts: Annotated[
        list[str] | None, typer.Option("--with", metavar="TEXT", help="A text that has it. Again for more.")
    ] = None,
    without_texts: Annotated[
        list[str] | None, typer.Option("--without", metavar="TEXT", help="A text that does not.")
    ] = None,
    with_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of texts that have it.")
    ] = None,
    without_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File of texts that do not.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many features to show, at most.", min=1)] = 20,
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Find the features that are active in some texts and not in others."""
    positive = _texts(with_texts, with_file, "--with")
    negative = _texts(without_texts, without_file, "--without")
    with connection.client() as client:
        found = client.contrast_features(positive, negative, sae=sae, limit=top)
    if json:
        print_json(found)
    else:
        console().print(contrast_table(found))


@app.command(epilog=SHOW_EPILOG)
@connecting
def show(
    feature: Annotated[str, typer.Argument(metavar="TARGET", help="Its index or exact label.")],
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show what is recorded about one feature."""
    try:
        target = parse_target(feature, sae)
    except EditSyntaxError as error:
        raise fail(str(error), code=USAGE) from error
    with connection.client() as client:
        found = client.get_feature(settled_target(target, on_server(client)))
    if json:
        print_json(found)
        return
    table = Table(show_header=False)
    for name, value in _rows(found):
        table.add_row(name, Text(value))
    console().print(table)


def features_table(found: Iterable[FeatureInfo], title: str) -> Table:
    """One row for each feature."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("index", "label", "max", "density", "precision", "languages"):
        table.add_column(
            name, justify="right" if name in ("index", "max", "density", "precision") else "left"
        )
    for each in found:
        table.add_row(
            str(each.index),
            Text(each.label, style="red" if each.harmful else ""),
            _number(each.max_activation, "{:.2f}"),
            _number(each.density, "{:.4f}"),
            _number(each.precision, "{:.2f}"),
            Text(" ".join(each.languages)),
        )
    return table


def contrast_table(found: Contrast) -> Table:
    """One row for each feature, highest score first."""
    table = Table(title=f"features of {found.sae}", title_justify="left", title_style="bold")
    for name in ("index", "score", "fires with", "fires without", "mean with", "mean without"):
        table.add_column(name, justify="right")
    table.add_column("label")
    for each in found:
        table.add_row(
            str(each.feature.index),
            f"{each.score:.2f}",
            f"{each.positive.firing_rate:.0%}",
            f"{each.negative.firing_rate:.0%}",
            f"{each.positive.mean_activation:.2f}",
            f"{each.negative.mean_activation:.2f}",
            Text(each.feature.label or "(no label)"),
        )
    return table


def _rows(found: FeatureInfo) -> list[tuple[str, str]]:
    return [
        ("SAE", found.sae),
        ("index", str(found.index)),
        ("site", found.site),
        ("label", found.label or "(none)"),
        ("recorded maximum", _number(found.max_activation, "{:.3f}")),
        ("density", _number(found.density, "{:.5f}")),
        ("precision", _number(found.precision, "{:.3f}")),
        ("precision by language", shares(found.precision_by_language)),
        ("recall by language", shares(found.recall)),
        ("subjects", ", ".join(found.subjects) or "-"),
        ("languages", ", ".join(found.languages) or "-"),
        ("harmful", "yes" if found.harmful else "no"),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _texts(given: list[str] | None, file: Path | None, name: str) -> list[str]:
    """The texts of an option and its file, blank lines left out; ends the command where there are none."""
    texts = list(given or ())
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise fail(f"{file} cannot be read: {sentence(error)}", code=USAGE) from error
        texts += [line for line in lines if line.strip()]
    if not texts:
        raise fail(f"no texts are given with {name}", f"give {name} TEXT or {name}-file FILE", USAGE)
    return texts
