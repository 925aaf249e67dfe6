"""The command `python -m saegis_lab.realmodel`: a filter on a real model, step by step or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.realmodel import steps
from saegis_lab.realmodel.chats import SHIPPED, Chats
from saegis_lab.realmodel.recipe import Recipe
from saegis_lab.realmodel.steps import Run, console


class Step(StrEnum):
    """What can be asked for: one of the steps, or all of them in their order."""

    CORPUS = "corpus"
    FINE_TUNE = "fine-tune"
    INPUTS = "inputs"
    COMPLIANCE = "compliance"
    ALL = "all"


STEPS: dict[Step, Callable[[Run], None]] = {
    Step.CORPUS: steps.make_corpus,
    Step.FINE_TUNE: steps.make_copy,
    Step.INPUTS: steps.write_inputs,
    Step.COMPLIANCE: steps.measure_copy,
}


def run(
    step: Annotated[Step, typer.Argument(help="Which step to run; `all` runs every one.")],
    model: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that the steps read and write.")] = Path(
        "runs/realmodel"
    ),
    chats: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="Chats, a JSON file a language.")
    ] = SHIPPED,
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Where the tokenizer has none."),
    ] = None,
) -> None:
    """Make and measure a filter on a real model. Each step goes on where it was broken off."""
    template = chat_template.read_text(encoding="utf-8") if chat_template is not None else None
    known = Run(model, out, Recipe(), Chats.load(chats), template)
    for name, work in STEPS.items() if step is Step.ALL else [(step, STEPS[step])]:
        began = time.monotonic()
        work(known)
        console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


if __name__ == "__main__":
    typer.run(run)
