"""The command `python -m saegis_server.polyglot`: makes the reference model, step by step or all at once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis_server.polyglot.pipeline import STEPS, Recipe, ship
from saegis_server.polyglot.shipped import WEIGHTS


class Step(StrEnum):
    """What can be asked for on the command line: one step, all of them, or installing the result."""

    CORPUS = "corpus"
    TOKENIZER = "tokenizer"
    MODEL = "model"
    SAE = "sae"
    LABELS = "labels"
    FIGURES = "figures"
    ALL = "all"
    SHIP = "ship"


def run(
    step: Annotated[
        Step, typer.Argument(help="Which step to run; `all` runs corpus to figures; `ship` installs them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder that the steps read and write.")] = Path("runs/polyglot"),
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
) -> None:
    """Make the reference model: corpus, tokenizer, model, sae, labels, figures."""
    recipe = Recipe.quick() if quick else Recipe()
    if step is Step.SHIP:
        ship(out, WEIGHTS)
        return
    for name in STEPS if step is Step.ALL else [str(step)]:
        STEPS[name](out, recipe)


if __name__ == "__main__":
    typer.run(run)
