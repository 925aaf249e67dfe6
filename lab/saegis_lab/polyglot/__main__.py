"""The command `python -m saegis_lab.polyglot`: makes the reference model, step by step or all at once."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.polyglot import pipeline
from saegis_lab.polyglot.pipeline import figures_table
from saegis_lab.polyglot.recipe import Recipe
from saegis_lab.polyglot.seeds_table import seeds_table
from saegis_lab.polyglot.shipped import MANIFEST_NAME, Manifest
from saegis_lab.polyglot.steps import console
from saegis_server.reference import WEIGHTS


class Step(StrEnum):
    """What can be asked for: one of the seven steps, all of them, or what is done with finished runs."""

    CORPUS = "corpus"
    TOKENIZER = "tokenizer"
    MODEL = "model"
    SAE = "sae"
    LABELS = "labels"
    EVALUATION = "evaluation"
    PLOTS = "plots"
    ALL = "all"
    SHIP = "ship"
    FIGURES = "figures"
    SEEDS = "seeds"


def run(
    step: Annotated[
        Step,
        typer.Argument(
            help="Which step to run; `all` runs the seven; `ship` puts a run's weights into the package; "
            "`figures` shows what was measured, without --out of the shipped weights; `seeds` compares runs."
        ),
    ],
    out: Annotated[
        list[Path] | None, typer.Option(help="Folder that the steps read and write; several for `seeds`.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The run's number: all its seeds follow from it.")] = 0,
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
) -> None:
    """Make the reference model: corpus, tokenizer, model, sae, labels, evaluation, plots."""
    folders = out or [Path("runs/polyglot")]
    if step is Step.SEEDS:
        console.print(seeds_table([Manifest.load(each / MANIFEST_NAME) for each in folders]))
        return
    if step is Step.FIGURES:
        console.print(figures_table(Manifest.load((out or [WEIGHTS])[0] / MANIFEST_NAME)))
        return
    if len(folders) > 1:
        raise typer.BadParameter("give one --out; only `seeds` takes several")
    if step is Step.SHIP:
        pipeline.ship(folders[0], WEIGHTS)
        return
    if step in (Step.ALL, Step.PLOTS) and find_spec("matplotlib") is None:
        raise typer.BadParameter("matplotlib is not installed: pip install 'saegis-server[lab]'")
    recipe = Recipe.quick() if quick else Recipe()
    for name in pipeline.STEPS if step is Step.ALL else [str(step)]:
        pipeline.run_step(name, folders[0], recipe, seed)


if __name__ == "__main__":
    typer.run(run)
