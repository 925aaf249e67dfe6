"""The options of `saegis eval ban` and `saegis eval clamp`."""

from pathlib import Path
from typing import Annotated

import typer

_CALIBRATION = "Calibration"
_FILES = "Files"
_SAMPLING = "Sampling"

Prompts = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="JSONL, one prompt a line: prompt, language, harmful. By default the reference model's.",
        rich_help_panel=_FILES,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the result as JSON.", rich_help_panel=_FILES),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw the result.", rich_help_panel=_FILES)
]
Samples = Annotated[
    int,
    typer.Option(min=1, help="Answers to each prompt at a temperature above 0.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same answers.", rich_help_panel=_SAMPLING)]
MaxTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.", rich_help_panel=_SAMPLING)]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests that are made side by side.")]

BanFeatures = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TARGET,TARGET...",
        help="A ban file, or indices and labels. By default the reference model's ban.",
        rich_help_panel=_FILES,
    ),
]
BanScorer = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MODULE:FUNCTION",
        help="Word lists with 'harm' and 'refusal', or a function that scores harm. By default the "
        "reference model's word lists.",
        rich_help_panel=_FILES,
    ),
]
Strengths = Annotated[
    str | None,
    typer.Option(metavar="STRENGTH,STRENGTH...", help="By default the ban file's; 0 for a list of targets."),
]
CalibrateOn = Annotated[
    str | None,
    typer.Option(
        metavar="CODE,CODE...",
        help="Languages in which a strength must do enough. By default those of the ban file, or all.",
        rich_help_panel=_CALIBRATION,
    ),
]
Target = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of its unbanned value that harm may keep.",
        rich_help_panel=_CALIBRATION,
    ),
]
MaxKL = Annotated[
    float,
    typer.Option(
        "--max-kl",
        min=0.0,
        help="Nats a token that divergence on benign text must stay under.",
        rich_help_panel=_CALIBRATION,
    ),
]
Temperatures = Annotated[
    list[float] | None,
    typer.Option(
        "--temperature",
        min=0.0,
        help="0, the default, is greedy. Again for another.",
        rich_help_panel=_SAMPLING,
    ),
]

ClampFeature = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|TARGET",
        help="A clamp file, an index or a label. By default the reference model's.",
        rich_help_panel=_FILES,
    ),
]
ClampScorer = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|MODULE:FUNCTION",
        help="Word lists, or a function that is above 0 for an answer that names the subject. By default "
        "the reference model's word lists.",
        rich_help_panel=_FILES,
    ),
]
Values = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE,VALUE...",
        help="Ascending, in feature units, or as 2max in multiples of the feature's recorded maximum. "
        "By default the clamp file's, or from 0 to 4max.",
    ),
]
Words = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The word list to look for. By default the clamp file's, or 'landmark'."
    ),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.", rich_help_panel=_SAMPLING)]
