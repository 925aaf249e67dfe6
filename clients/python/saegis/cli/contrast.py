"""The command `saegis features contrast`: what tells two sets of texts apart, ready for a policy."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.output import USAGE, console, fail, print_json, shares, titled
from saegis.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Contrast, FeatureContrast

EPILOG = """
[bold]Examples[/bold]

saegis features contrast --with "The bridge is red." --without "The cat drinks milk."

saegis features contrast --with-file harmful.txt --without-file benign.txt --top 30

saegis features contrast --with-image bridge.png --without-image forest.jpg

saegis features contrast --with-file harmful.jsonl --without-file benign.jsonl --max-q 0.05 --as-rule ban-harm

Files hold one text a line; in a .jsonl each line is an object with a text and, for rates by language, its
language. The score is the share of texts with the feature less that of the others; separation the chance
that it is stronger in a text with than in one without; q the share of false discoveries if the table is cut
below that line. [bold]--as-rule[/bold] prints a rule of a policy instead, to stand under its rules.
"""
#: The strength of a rule's ban, until saegis policy calibrate finds the one that is needed.
_STRENGTH = 2.0


@dataclass(frozen=True, slots=True)
class _Texts:
    """The texts of one side, and the language of each, "" where it is not known."""

    texts: list[str]
    languages: list[str]


@options.grouped
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
    with_image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture that has it. Again for another.")
    ] = None,
    without_image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture that does not. Again for another.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many features to show, at most.", min=1)] = 20,
    max_q: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Only features of which at most this share is found by chance."),
    ] = None,
    as_rule: Annotated[
        str | None, typer.Option(metavar="ID", help="Print a policy's rule that bans them, with this id.")
    ] = None,
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Find the features that are active in some texts and pictures and not in others."""
    on, off = options.pictures(with_image), options.pictures(without_image)
    positive = _texts(with_texts, with_file, "--with", bool(on))
    negative = _texts(without_texts, without_file, "--without", bool(off))
    known = all(positive.languages + negative.languages) and not (on or off)
    with connection.client() as client:
        ranked = client.contrast_features(
            positive.texts,
            negative.texts,
            sae=sae,
            limit=top,
            positive_languages=positive.languages if known else (),
            negative_languages=negative.languages if known else (),
            max_q_value=max_q,
            positive_images=on,
            negative_images=off,
        )
    if as_rule is not None and not ranked.features:
        raise fail("no feature is left for a rule", "give more texts, or raise --max-q")
    if json:
        print_json(ranked)
    elif as_rule is not None:
        print(rule_yaml(ranked, as_rule, len(positive.texts) + len(on), len(negative.texts) + len(off)))
    else:
        console().print(_table(ranked, known))


def rule_yaml(contrast: Contrast, rule: str, positive: int, negative: int) -> str:
    """A rule that bans the features of a contrast, as an entry of a policy's `rules`.

    rule: its id; positive, negative: how many texts were compared. Comments tell each feature's figures.
    """
    worst = max(feature.q_value for feature in contrast)
    lines = [
        f"  # Chosen by a contrast of {positive} texts with {negative} others, among {contrast.tested}",
        f"  # features. The share of false discoveries is at most {worst:.2g}. saegis policy calibrate finds",
        "  # the strength.",
        f"  - id: {_scalar(rule)}",
        "    ban:",
        "      features:",
        *(
            f"        - {{sae: {_scalar(contrast.sae)}, index: {each.feature.index}}}  # {_told(each)}"
            for each in contrast
        ),
        f"      strength: {_STRENGTH}",
    ]
    return "\n".join(lines)


def _told(feature: FeatureContrast) -> str:
    """The figures of a feature on one line. What is no printable character would end a comment."""
    label = "".join(letter if letter.isprintable() else " " for letter in feature.feature.label)
    rates = f"fires in {feature.positive.firing_rate:.0%} and {feature.negative.firing_rate:.0%}"
    worst = feature.positive.firing_rate_by_language
    least = f", at least {min(worst.values()):.0%} in each language" if worst else ""
    return f"{label or '(no label)'}: {rates}{least}; q {feature.q_value:.2g}"


def _scalar(text: str) -> str:
    """A text as YAML, in quotation marks, whose form JSON shares."""
    return json_module.dumps(text)


def _table(contrast: Contrast, by_language: bool) -> Table:
    """One row for each feature, highest score first."""
    rates = ("score", "fires with", "fires without", "mean with", "mean without")
    numbers = ("index", *rates, "separation", "effect", "q")
    languages = ("with, by language",) if by_language else ()
    title = f"features of {contrast.sae}, of {contrast.tested} that fire"
    table = titled(title, (*numbers, *languages, "label"), numbers)
    for ranked in contrast:
        effect = ranked.standardized_difference
        table.add_row(
            str(ranked.feature.index),
            f"{ranked.score:.2f}",
            f"{ranked.positive.firing_rate:.0%}",
            f"{ranked.negative.firing_rate:.0%}",
            f"{ranked.positive.mean_activation:.2f}",
            f"{ranked.negative.mean_activation:.2f}",
            f"{ranked.separation:.2f}",
            "-" if effect is None else f"{effect:.2f}",
            f"{ranked.q_value:.2g}",
            *([shares(ranked.positive.firing_rate_by_language)] if by_language else []),
            Text(ranked.feature.label or "(no label)"),
        )
    return table


def _texts(values: list[str] | None, file: Path | None, name: str, has_pictures: bool = False) -> _Texts:
    """The texts of an option and its file without blank lines; ends the command if there are none."""
    texts = _Texts(list(values or ()), [""] * len(values or ()))
    if file is not None:
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise fail(f"{file} cannot be read: {sentence(error)}", code=USAGE) from error
        # In JSON a text may hold other line breaks of Unicode.
        _add(texts, file, content.split("\n") if file.suffix == ".jsonl" else content.splitlines())
    if not texts.texts and not has_pictures:
        raise fail(f"no texts are given with {name}", f"give {name} TEXT or {name}-file FILE", USAGE)
    return texts


def _add(texts: _Texts, file: Path, lines: Sequence[str]) -> None:
    """Add the texts of a file's lines; ends the command where a line of a .jsonl is wrong."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text, language = line, ""
        if file.suffix == ".jsonl":
            try:
                entry = json_module.loads(line)
                text, language = entry["text"], entry.get("language", "")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                wrong = f"{file}: line {number} is no object with a text"
                raise fail(wrong, 'write {"text": "...", "language": "en"}', USAGE) from error
            if not isinstance(text, str) or not isinstance(language, str):
                raise fail(f"{file}: line {number}: text and language are texts", code=USAGE)
        texts.texts.append(text)
        texts.languages.append(language)
