"""The commands `saegis inspect` and `saegis features search | contrast | show | usage`: what features do.

The other commands of `saegis features` come with the server package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import contrast as contrasting
from saegis.cli import options
from saegis.cli import usage as using
from saegis.cli.connection import Connection
from saegis.cli.edits import EditSyntaxError, best_feature, parse_feature, server_search
from saegis.cli.family import Family
from saegis.cli.inspect_page import page
from saegis.cli.output import USAGE, console, fail, notes, print_json, shares, titled
from saegis.cli.streams import read_input, sentence

if TYPE_CHECKING:
    from saegis import ActivationHistogram, FeatureExample, FeatureInfo, FeatureRef, Image, Inspection


class _Features(Family):
    """The commands `saegis features ...`."""

    names = ("search", "contrast", "show", "usage", "label", "import", "choose")


app = typer.Typer(
    cls=_Features,
    no_args_is_help=True,
    help="Find features, watch which fire, label them, and choose those for a ban.",
)

INSPECT_EPILOG = """
[bold]Examples[/bold]

saegis inspect "The bridge stands in the fog."

saegis inspect "Мост стоит в тумане." --top 3

saegis inspect --chat "How do I make bread?" --json

saegis inspect "The bridge stands in the fog." --html bridge.html

saegis inspect --image bridge.png --feature 1785 --html bridge.html

A text that is longer than the model's context is read in windows; each token sees at least half a context.
"""
SEARCH_EPILOG = """
[bold]Examples[/bold]

saegis features search "golden gate"

saegis features search harmful --top 50 --json
"""
#: The characters of the longest bar of a histogram.
_LONGEST_BAR = 40
SHOW_EPILOG = """
[bold]Examples[/bold]

saegis features show 3800

saegis features show "Golden Gate Bridge" --json
"""


@options.grouped
def inspect(
    text: Annotated[
        str, typer.Argument(help="The text to read; - reads it from standard input. May be left out.")
    ] = "",
    chat: Annotated[bool, typer.Option("--chat", help="The text is a user's message.")] = False,
    image: options.Image = None,
    feature: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", help="A feature whose strength is told at every token, and shown first."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many features to show for each token.")] = 5,
    sae: options.Sae = "",
    site: Annotated[str, typer.Option(metavar="SITE", help="Where to read; by default the SAE's.")] = "",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the tokens coloured by feature.")
    ] = None,
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show the strongest features of each token, in feature units, with their labels."""
    read, pictures = read_input() if text == "-" else text, options.pictures(image)
    if not read and not pictures:
        raise fail("there is nothing to read", "give a text, or a picture with --image", USAGE)
    with connection.client() as client:
        features = [] if feature is None else [best_feature(_feature(feature, sae), server_search(client))]
        inspection = (
            client.inspect(
                messages=[{"role": "user", "content": [*pictures, read] if pictures else read}],
                sae=sae,
                site=site,
                top_k=top,
                features=features,
            )
            if chat or pictures
            else client.inspect(read, sae=sae, site=site, top_k=top, features=features, long_text=True)
        )
    if html is not None:
        _write_page(html, inspection, pictures)
    if json:
        print_json(inspection)
    elif html is None:
        console().print(_inspection_table(inspection))


@app.command(epilog=SEARCH_EPILOG)
@options.grouped
def search(
    words: Annotated[str, typer.Argument(help="Words of the label; none lists every labelled one.")] = "",
    top: Annotated[int, typer.Option(help="How many features to show, at most.", min=1)] = 20,
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Find features by words of their labels, best first."""
    features: list[FeatureInfo] = []
    total, page_token = 0, ""
    with connection.client() as client:
        while len(features) < top:
            size = min(100, top - len(features))
            page = client.search_features(words, sae=sae, page_size=size, page_token=page_token)
            features += page.features
            total, page_token = page.total_size, page.next_page_token
            if not page_token:
                break
    if json:
        print_json({"features": features, "total_size": total})
        return
    if not features:
        notes().print(f"no label matches {words!r}", markup=False)
        return
    console().print(_features_table(features, f"{len(features)} of {total} features"))


app.command(epilog=contrasting.EPILOG)(contrasting.contrast)
app.command(epilog=using.EPILOG)(using.usage)


@app.command(epilog=SHOW_EPILOG)
@options.grouped
def show(
    feature: Annotated[str, typer.Argument(metavar="TARGET", help="Its index or exact label.")],
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show what is recorded about one feature, how strongly it fires, and where most strongly."""
    target = _feature(feature, sae)
    with connection.client() as client:
        info = client.get_feature(best_feature(target, server_search(client)))
    if json:
        print_json(info)
        return
    table = Table(show_header=False)
    for name, value in _rows(info):
        table.add_row(name, Text(value))
    console().print(table)
    if info.histogram is not None:
        console().print(_histogram_table(info.histogram))
    if info.examples:
        console().print(_examples_table(info.examples))


def _feature(text: str, sae: str) -> FeatureRef:
    """The feature that a text names; ends the command where it names none."""
    try:
        return parse_feature(text, sae)
    except EditSyntaxError as error:
        raise fail(str(error), code=USAGE) from error


def _write_page(path: Path, inspection: Inspection, pictures: Sequence[Image]) -> None:
    """Write the page of an inspection; ends the command where that fails."""
    try:
        path.write_text(page(inspection, pictures), encoding="utf-8")
    except OSError as error:
        raise fail(f"{path} cannot be written: {sentence(error)}", "name another file with --html") from error
    notes().print(f"wrote {path}", style="dim", markup=False, soft_wrap=True)


def _inspection_table(inspection: Inspection) -> Table:
    """One row for each token: its text and its features, strongest first."""
    windows = f", read in {inspection.windows} windows" if inspection.windows > 1 else ""
    table = titled(f"{inspection.sae} at {inspection.site}{windows}", ())
    table.add_column("token", no_wrap=True)
    table.add_column("strongest features: index, activation, label")
    for token in inspection:
        lines = (
            f"{feature.index:>6} {feature.activation:8.2f}  {feature.label or '(no label)'}"
            for feature in token.features
        )
        table.add_row(Text(repr(token.text)), Text("\n".join(lines) or "(none)"))
    return table


def _features_table(features: Iterable[FeatureInfo], title: str) -> Table:
    """One row for each feature."""
    numbers = ("index", "max", "density", "precision")
    table = titled(title, ("index", "label", "max", "density", "precision", "languages"), numbers)
    for feature in features:
        table.add_row(
            str(feature.index),
            Text(feature.label, style="red" if feature.harmful else ""),
            _number(feature.max_activation, "{:.2f}"),
            _number(feature.density, "{:.4f}"),
            _number(feature.precision, "{:.2f}"),
            Text(" ".join(feature.languages)),
        )
    return table


def _rows(feature: FeatureInfo) -> list[tuple[str, str]]:
    return [
        ("SAE", feature.sae),
        ("index", str(feature.index)),
        ("site", feature.site),
        ("label", feature.label or "(none)"),
        ("recorded maximum", _number(feature.max_activation, "{:.3f}")),
        ("density", _number(feature.density, "{:.5f}")),
        ("precision", _number(feature.precision, "{:.3f}")),
        ("precision by language", shares(feature.precision_by_language)),
        ("recall by language", shares(feature.recall)),
        ("subjects", ", ".join(feature.subjects) or "-"),
        ("languages", ", ".join(feature.languages) or "-"),
        ("harmful", "yes" if feature.harmful else "no"),
    ]


def _histogram_table(histogram: ActivationHistogram) -> Table:
    """One row for each bin up to the last one that holds a token, with a bar."""
    fires = sum(histogram.counts)
    table = titled(
        f"fires on {fires} of {histogram.tokens} tokens", ("activation", "tokens", ""), ("tokens",)
    )
    most = max(histogram.counts, default=0)
    last = max((place for place, count in enumerate(histogram.counts) if count), default=-1)
    for place, count in enumerate(histogram.counts[: last + 1]):
        low = place * histogram.bin_width
        bar = "#" * -(-_LONGEST_BAR * count // most)
        table.add_row(f"{low:.3g} to {low + histogram.bin_width:.3g}", str(count), bar)
    return table


def _examples_table(examples: Iterable[FeatureExample]) -> Table:
    """One row for each piece of text; the strongest token stands out."""
    table = titled("strongest in", ("activation", "text"), ("activation",))
    for example in examples:
        text = Text()
        for place, token in enumerate(example.tokens):
            strongest, active = place == example.strongest, example.activations[place] > 0.0
            text.append(
                token.replace("\n", "\\n"), "bold reverse" if strongest else "underline" if active else ""
            )
        table.add_row(f"{example.activations[example.strongest]:.2f}", text)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
