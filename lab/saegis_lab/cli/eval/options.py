"""Options that the commands of `saegis eval` share, singly and in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.text import Text

from saegis.cli.options import Json
from saegis.cli.output import console, print_json
from saegis_lab.cli.files import check_places, note_written, write_result

#: Options that --help shows in a panel of their own.
in_calibration = partial(typer.Option, rich_help_panel="Calibration")
in_files = partial(typer.Option, rich_help_panel="Files")
in_sampling = partial(typer.Option, rich_help_panel="Sampling")

Prompts = Annotated[
    Path | None,
    in_files(
        exists=True,
        dir_okay=False,
        help="JSONL, one prompt a line: prompt, language, harmful. By default the reference model's.",
    ),
]
MaxTokens = Annotated[int, in_sampling(min=1, help="Most tokens of an answer.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests that are made side by side.")]

BanFeatures = Annotated[
    str | None,
    in_files(
        metavar="FILE|TARGET,TARGET...",
        help="A ban file, or indices and labels. By default the reference model's ban.",
    ),
]
ChosenFrom = Annotated[
    str | None,
    typer.Option(
        metavar="CODE,CODE...",
        help="The languages that the features were chosen from. By default those of the ban file.",
    ),
]
BanScorer = Annotated[
    str | None,
    in_files(
        metavar="FILE|MODULE:FUNCTION",
        help="Word lists with 'harm' and 'refusal', or a function that scores harm. By default the "
        "reference model's word lists.",
    ),
]
Strengths = Annotated[
    str | None,
    typer.Option(metavar="STRENGTH,STRENGTH...", help="By default the ban file's; 0 for a list of targets."),
]
CalibrateOn = Annotated[
    str | None,
    in_calibration(
        metavar="CODE,CODE...",
        help="Languages in which a strength must do enough. By default those of the ban file, or all.",
    ),
]
Temperatures = Annotated[
    list[float] | None,
    in_sampling("--temperature", min=0.0, help="0, the default, is greedy. Again for another."),
]

ClampFeature = Annotated[
    str | None,
    in_files(
        metavar="FILE|TARGET", help="A clamp file, an index or a label. By default the reference model's."
    ),
]
ClampScorer = Annotated[
    str | None,
    in_files(
        metavar="FILE|MODULE:FUNCTION",
        help="Word lists, or a function that is above 0 for an answer that names the subject. By default "
        "the reference model's word lists.",
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
Temperature = Annotated[float, in_sampling(min=0.0, help="0 is greedy.")]


@dataclass(frozen=True, slots=True)
class Answering:
    """A group of options: how many answers are drawn, and how many at once."""

    samples: Annotated[int, in_sampling(min=1, help="Answers to each prompt at a temperature above 0.")] = 1
    seed: Annotated[int, in_sampling(help="The same seed gives the same answers.")] = 0
    max_tokens: MaxTokens = 80
    concurrency: Concurrency = 8


@dataclass(frozen=True, slots=True)
class Goal:
    """A group of options: what a strength must reach to be chosen, and what is told where it is missed."""

    target: Annotated[
        float, in_calibration(min=0.0, max=1.0, help="Share of its unbanned value that harm may keep.")
    ] = 0.1
    max_kl: Annotated[
        float,
        in_calibration(
            "--max-kl", min=0.0, help="Nats a token that divergence on benign text must stay under."
        ),
    ] = 0.05
    max_perplexity: Annotated[
        float,
        in_calibration(
            "--max-perplexity",
            min=0.0,
            help="Of answers, over that of ordinary ones. A miss is told, and does not decide.",
        ),
    ] = 1.5


Out = Annotated[Path | None, in_files(metavar="FILE", help="Write the result as JSON.")]


@dataclass(frozen=True, slots=True)
class JsonOutput:
    """A group of options: where a result that is not drawn goes."""

    out: Out = None
    json: Json = False

    def check(self) -> None:
        """End the command before the measurement if its result could not be written."""
        check_places(self.out, None)

    def write(self, result: object, shown: Callable[[], Iterable[RenderableType]]) -> None:
        """Write the result to the file that was asked for, and to standard output as JSON or as `shown`."""
        write_result(self.out, result)
        _print(result, shown, self.json)


@dataclass(frozen=True, slots=True)
class Output:
    """A group of options: where a result goes."""

    out: Out = None
    plot: Annotated[Path | None, in_files(metavar="FILE.png", help="Draw the result.")] = None
    json: Json = False

    def check(self) -> None:
        """End the command before the measurement if its result could not be written."""
        check_places(self.out, self.plot)

    def write(
        self, result: object, shown: Callable[[], Iterable[RenderableType]], draw: Callable[[Path], None]
    ) -> None:
        """Write the result to the files that were asked for, and to standard output as JSON or as `shown`.

        Names each file written on standard error.
        """
        write_result(self.out, result)
        if self.plot is not None:
            draw(self.plot)
            note_written(self.plot)
        _print(result, shown, self.json)


def _print(result: object, shown: Callable[[], Iterable[RenderableType]], json: bool) -> None:
    """Print a result as JSON or as what is `shown` of it."""
    if json:
        print_json(result)
        return
    for part in shown():
        console().print(part, soft_wrap=isinstance(part, Text))
