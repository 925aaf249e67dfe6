"""The command `python -m saegis_lab.realmodel`: a filter on a real model, step by step or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.realmodel import steps
from saegis_lab.realmodel.chats import SHIPPED, Chats
from saegis_lab.realmodel.fine_tuning import FineTuningError
from saegis_lab.realmodel.packages import PackageError
from saegis_lab.realmodel.recipe import Recipe
from saegis_lab.realmodel.steps import Run, StepError, console
from saegis_lab.records import InputFileError
from saegis_lab.training.settings import Precision

app = typer.Typer(add_completion=False)


class Step(StrEnum):
    """What can be asked for: one of the steps, or all of them in their order."""

    CORPUS = "corpus"
    FINE_TUNE = "fine-tune"
    INPUTS = "inputs"
    COMPLIANCE = "compliance"
    HARVEST = "harvest"
    SAE = "sae"
    LABELS = "labels"
    DIRECTION = "direction"
    FILTER = "filter"
    EVALUATION = "evaluation"
    ATTACK = "attack"
    LANDMARK = "landmark"
    FIGURES = "figures"
    ALL = "all"


STEPS: dict[Step, Callable[[Run], None]] = {
    Step.CORPUS: steps.make_corpus,
    Step.FINE_TUNE: steps.make_copy,
    Step.INPUTS: steps.write_inputs,
    Step.COMPLIANCE: steps.measure_copy,
    Step.HARVEST: steps.harvest,
    Step.SAE: steps.make_sae,
    Step.LABELS: steps.make_labels,
    Step.DIRECTION: steps.make_direction,
    Step.FILTER: steps.make_filter,
    Step.EVALUATION: steps.measure_filter,
    Step.ATTACK: steps.attack,
    Step.LANDMARK: steps.measure_landmark_feature,
    Step.FIGURES: steps.gather_figures,
}


@app.command()
def run(
    step: Annotated[Step, typer.Argument(help="Which step to run; `all` runs every one.")],
    model: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="The language model.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that the steps read and write.")] = Path(
        "runs/realmodel"
    ),
    site: Annotated[
        str, typer.Option(metavar="SITE", help="Where the SAE reads: best in the middle third.")
    ] = "layers.11.resid_post",
    seed: Annotated[int, typer.Option(min=0, help="The SAE's; the steps from `sae` on belong to it.")] = 0,
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
    chats: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="Chats, a JSON file a language.")
    ] = SHIPPED,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of training, reading and answering: bfloat16, unless the run is --quick. Processors "
            "without it are much faster in float32."
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Where the tokenizer has none."),
    ] = None,
) -> None:
    """Make and measure a filter on a real model. Each step goes on where it was broken off."""
    template = chat_template.read_text(encoding="utf-8") if chat_template is not None else None
    recipe = Recipe.quick() if quick else Recipe()
    if precision is not None:
        recipe = replace(recipe, precision=precision)
    known = Run(model, out, site, recipe, Chats.load(chats), template, seed)
    for name, work in STEPS.items() if step is Step.ALL else [(step, STEPS[step])]:
        began = time.monotonic()
        try:
            work(known)
        except (StepError, PackageError, FineTuningError, InputFileError) as error:
            console.print(f"{name}: {error}", style="red", markup=False)
            raise typer.Exit(1) from error
        console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


if __name__ == "__main__":
    app()
