"""The command `python -m saegis_lab.polyglot.eyes`: gives the reference model eyes, step by step or all at
once."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.evaluation.requests import Progress
from saegis_lab.polyglot.eyes import steps
from saegis_lab.polyglot.eyes.drawing import draw_landmark
from saegis_lab.polyglot.eyes.measuring import (
    clamp_rows,
    eyes_table,
    measure_clamp,
    measure_filter,
    rank_features,
    write_pictures,
)
from saegis_lab.polyglot.eyes.recipe import EyesRecipe
from saegis_lab.polyglot.eyes.shipping import ship
from saegis_lab.polyglot.eyes.steps import console
from saegis_server.reference import EYES

#: Where the project keeps what was measured, in a checkout.
DOCS = Path(__file__).parents[4] / "docs" / "eyes"


def _stages() -> Progress:
    """A progress that prints each stage once, as it begins."""
    begun: set[str] = set()

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage not in begun:
            begun.add(stage)
            console.print(f"  {stage} ...")

    return progress


def _filter(out: Path, _recipe: EyesRecipe) -> None:
    console.print(eyes_table(measure_filter(out, _stages())))


def _clamp(out: Path, _recipe: EyesRecipe) -> None:
    for title, cells in clamp_rows(measure_clamp(out, _stages())):
        console.print(title, *cells)


#: The steps by name, in order.
STEPS: dict[str, Callable[[Path, EyesRecipe], None]] = {
    "drawings": steps.make_drawings,
    "tower": steps.make_tower,
    "words": steps.make_words,
    "eyes": steps.make_eyes,
    "ranks": rank_features,
    "pictures": write_pictures,
    "filter": _filter,
    "clamp": _clamp,
    "plot": draw_landmark,
}


class Step(StrEnum):
    """What can be asked for: one of the steps, all of them, or what is done with a finished run."""

    DRAWINGS = "drawings"
    TOWER = "tower"
    WORDS = "words"
    EYES = "eyes"
    RANKS = "ranks"
    PICTURES = "pictures"
    FILTER = "filter"
    CLAMP = "clamp"
    PLOT = "plot"
    ALL = "all"
    SHIP = "ship"


def run_step(name: str, out: Path, recipe: EyesRecipe) -> None:
    """Run one step in the folder `out`. Raises KeyError for an unknown step."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    STEPS[name](out, recipe)
    console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


def run(
    step: Annotated[
        Step,
        typer.Argument(
            help="Which step to run; `all` runs every one; `ship` puts the run's model into the package, and "
            "what was measured into docs/eyes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder that the steps read and write.")] = Path("runs/eyes"),
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
) -> None:
    """Give the reference model eyes."""
    if step is Step.SHIP:
        ship(out, EYES, DOCS)
        return
    recipe = EyesRecipe.quick() if quick else EyesRecipe()
    for name in STEPS if step is Step.ALL else [str(step)]:
        run_step(name, out, recipe)


if __name__ == "__main__":
    typer.run(run)
