"""The command `python -m saegis_lab.polyglot.eyes`: gives the reference model eyes, step by step or all at
once."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.polyglot.eyes import steps
from saegis_lab.polyglot.eyes.recipe import EyesRecipe
from saegis_lab.polyglot.eyes.steps import console

#: The steps by name, in order.
STEPS: dict[str, Callable[[Path, EyesRecipe], None]] = {
    "drawings": steps.make_drawings,
    "tower": steps.make_tower,
    "words": steps.make_words,
    "eyes": steps.make_eyes,
}


class Step(StrEnum):
    """What can be asked for: one of the steps, or all of them."""

    DRAWINGS = "drawings"
    TOWER = "tower"
    WORDS = "words"
    EYES = "eyes"
    ALL = "all"


def run_step(name: str, out: Path, recipe: EyesRecipe) -> None:
    """Run one step in the folder `out`. Raises KeyError for an unknown step."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    STEPS[name](out, recipe)
    console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


def run(
    step: Annotated[Step, typer.Argument(help="Which step to run; `all` runs every one.")],
    out: Annotated[Path, typer.Option(help="Folder that the steps read and write.")] = Path("runs/eyes"),
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
) -> None:
    """Give the reference model eyes."""
    recipe = EyesRecipe.quick() if quick else EyesRecipe()
    for name in STEPS if step is Step.ALL else [str(step)]:
        run_step(name, out, recipe)


if __name__ == "__main__":
    typer.run(run)
