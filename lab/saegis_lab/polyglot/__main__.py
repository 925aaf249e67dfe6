"""The command `python -m saegis_lab.polyglot`: makes the reference model, step by step or all at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.clamp import ClampResult
from saegis_lab.evaluation.experiment import RedirectFile
from saegis_lab.evaluation.plots import plot_ban, plot_clamp
from saegis_lab.evaluation.requests import Progress
from saegis_lab.polyglot import steps
from saegis_lab.polyglot.filter import attack_run_filter, make_run_filter
from saegis_lab.polyglot.filter_plot import plot_filter
from saegis_lab.polyglot.filter_tables import (
    attack_table,
    filter_table,
    missed_lines,
    parts_table,
    seeds_filter_table,
    seeds_parts_table,
    shipping_line,
)
from saegis_lab.polyglot.manifest import (
    MANIFEST_NAME,
    Manifest,
    figures_table,
    landmark_table,
    seeds_table,
    ship,
)
from saegis_lab.polyglot.measuring import make_manifest, measure
from saegis_lab.polyglot.recipe import Recipe, Seeds
from saegis_lab.polyglot.redirect import REDIRECT, make_redirect
from saegis_lab.polyglot.steps import console
from saegis_server.reference import WEIGHTS

app = typer.Typer(add_completion=False)

BAN_PLOT, CLAMP_PLOT, FILTER_PLOT = "ban.png", "clamp.png", "filter.png"
#: Where the project keeps the shipped filter, in a checkout.
POLICY = Path(__file__).parents[3] / "deploy" / "policies" / "no-harm"


def run_step(name: str, out: Path, recipe: Recipe, run: int) -> None:
    """Run one step of run number `run` in the folder `out`. Raises KeyError for an unknown step."""
    began = time.monotonic()
    STEPS[name](out, recipe, run)
    console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


def _seeded(step: Callable[[Path, Recipe, Seeds], None]) -> Callable[[Path, Recipe, int], None]:
    return lambda out, recipe, run: step(out, recipe, Seeds.of(run))


def _stages() -> Progress:
    """A progress that prints each stage once, as it begins."""
    begun: set[str] = set()

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage not in begun:
            begun.add(stage)
            console.print(f"  {stage} ...")

    return progress


def _evaluate(out: Path, recipe: Recipe, run: int) -> None:
    measure(out, recipe, _stages())
    manifest = make_manifest(out, recipe, run)
    manifest.save(out / MANIFEST_NAME)
    console.print(figures_table(manifest))


def _redirect(out: Path, recipe: Recipe, run: int) -> None:
    manifest = make_redirect(out, recipe, Seeds.of(run), _stages())
    console.print(f"redirect: {RedirectFile.load(out / steps.EVAL / REDIRECT)}")
    console.print(landmark_table(manifest))


def _filter(out: Path, recipe: Recipe, run: int) -> None:
    _show_filter(make_run_filter(out, recipe, run, _stages()))


def _attack(out: Path, recipe: Recipe, _run: int) -> None:
    manifest = attack_run_filter(out, recipe, _stages())
    assert manifest.filter is not None  # noqa: S101 - the step raises where there is none
    console.print(attack_table(manifest.filter))


def _show_filter(manifest: Manifest) -> None:
    """The tables of a run's filter, where it has one, and the bars that it misses."""
    made = manifest.filter
    if made is None:
        console.print("this run has no filter; run the step `filter`")
        return
    tables = [filter_table(made), filter_table(made, sampled=True), parts_table(made)]
    for table in [*tables, attack_table(made)] if made.attacks else tables:
        console.print(table)
    for line in missed_lines(made):
        console.print(line, markup=False)


def _compare(manifests: list[Manifest]) -> None:
    """The runs side by side, and which of them ships."""
    for table in (seeds_table(manifests), seeds_parts_table(manifests), seeds_filter_table(manifests)):
        console.print(table)
    console.print(f"what ships: {shipping_line(manifests)}")


def _manifest(path: Path) -> Manifest:
    """The manifest of a run's folder, or a manifest's file."""
    return Manifest.load(path if path.is_file() else path / MANIFEST_NAME)


def _draw(out: Path, _recipe: Recipe, _run: int) -> None:
    plot_ban(BanReport.load(out / steps.BAN_CURVE), out / BAN_PLOT)
    plot_clamp(ClampResult.load(out / steps.CLAMP_RESULT), out / CLAMP_PLOT)
    made = Manifest.load(out / MANIFEST_NAME).filter
    if made is not None:
        plot_filter(made, out / FILTER_PLOT)
    console.print(f"plots: in {out}")


#: The steps by name, in order.
STEPS: dict[str, Callable[[Path, Recipe, int], None]] = {
    "corpus": _seeded(steps.make_corpus),
    "tokenizer": _seeded(steps.make_tokenizer),
    "model": _seeded(steps.make_model),
    "sae": _seeded(steps.make_sae),
    "labels": _seeded(steps.make_labels),
    "evaluation": _evaluate,
    "redirect": _redirect,
    "filter": _filter,
    "attack": _attack,
    "plots": _draw,
}


class Step(StrEnum):
    """What can be asked for: one of the steps, all of them, or what is done with finished runs."""

    CORPUS = "corpus"
    TOKENIZER = "tokenizer"
    MODEL = "model"
    SAE = "sae"
    LABELS = "labels"
    EVALUATION = "evaluation"
    REDIRECT = "redirect"
    FILTER = "filter"
    ATTACK = "attack"
    PLOTS = "plots"
    ALL = "all"
    SHIP = "ship"
    FIGURES = "figures"
    SEEDS = "seeds"


@app.command()
def run(
    step: Annotated[
        Step,
        typer.Argument(
            help="Which step to run; `all` runs every one; `ship` puts a run's weights into the package, and "
            "its filter into deploy/policies/no-harm; `figures` shows what was measured, without --out of "
            "the shipped weights; `seeds` compares runs."
        ),
    ],
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that the steps read and write; for `seeds` several, or their manifests."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The run's number: all its seeds follow from it.")] = 0,
    quick: Annotated[bool, typer.Option(help="A tiny run that shows that the steps fit together.")] = False,
) -> None:
    """Make the reference model: corpus, tokenizer, model, sae, labels, evaluation, redirect, filter, attack,
    plots."""
    folders = out or [Path("runs/polyglot")]
    if step is Step.SEEDS:
        _compare([_manifest(path) for path in folders])
        return
    if step is Step.FIGURES:
        manifest = _manifest((out or [WEIGHTS])[0])
        for table in (figures_table(manifest), landmark_table(manifest)):
            console.print(table)
        _show_filter(manifest)
        return
    if len(folders) > 1:
        raise typer.BadParameter("give one --out; only `seeds` takes several")
    if step is Step.SHIP:
        ship(folders[0], WEIGHTS, POLICY)
        return
    if step in (Step.ALL, Step.PLOTS) and find_spec("matplotlib") is None:
        raise typer.BadParameter("matplotlib is not installed: pip install 'saegis-server[lab]'")
    recipe = Recipe.quick() if quick else Recipe()
    for name in STEPS if step is Step.ALL else [str(step)]:
        run_step(name, folders[0], recipe, seed)


if __name__ == "__main__":
    app()
