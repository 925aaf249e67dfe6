"""The pipeline that makes the reference model: seven steps, each reading what those before it wrote."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from saegis_lab.evaluation.bars import Bars, Figure
from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.clamp import ClampResult
from saegis_lab.evaluation.plots import plot_ban, plot_clamp
from saegis_lab.polyglot import files, steps
from saegis_lab.polyglot.measuring import make_manifest, measure
from saegis_lab.polyglot.recipe import Recipe, Seeds
from saegis_lab.polyglot.shipped import MANIFEST_NAME, PARTS, Manifest
from saegis_lab.polyglot.steps import console

BAN_PLOT, CLAMP_PLOT = "ban.png", "clamp.png"
#: What stands behind a figure that misses its bar, as in the tables of `saegis eval`.
MARK = "!"


def run_step(name: str, out: Path, recipe: Recipe, run: int) -> None:
    """Run one step of run number `run` in the folder `out`. Raises KeyError for a step that there is not."""
    began = time.monotonic()
    STEPS[name](out, recipe, run)
    console.print(f"{name}: done in {time.monotonic() - began:.0f} s", style="green")


def _seeded(step: Callable[[Path, Recipe, Seeds], None]) -> Callable[[Path, Recipe, int], None]:
    return lambda out, recipe, run: step(out, recipe, Seeds.of(run))


def _evaluate(out: Path, recipe: Recipe, run: int) -> None:
    begun: set[str] = set()

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage not in begun:
            begun.add(stage)
            console.print(f"  {stage} ...")

    measure(out, recipe, progress)
    manifest = make_manifest(out, recipe, run)
    manifest.save(out / MANIFEST_NAME)
    console.print(figures_table(manifest))


def _draw(out: Path, _recipe: Recipe, _run: int) -> None:
    plot_ban(BanReport.load(out / files.BAN_CURVE), out / BAN_PLOT)
    plot_clamp(ClampResult.load(out / files.CLAMP_RESULT), out / CLAMP_PLOT)
    console.print(f"plots: {out / BAN_PLOT} and {out / CLAMP_PLOT}")


#: The seven steps by name, in order.
STEPS: dict[str, Callable[[Path, Recipe, int], None]] = {
    "corpus": _seeded(steps.make_corpus),
    "tokenizer": _seeded(steps.make_tokenizer),
    "model": _seeded(steps.make_model),
    "sae": _seeded(steps.make_sae),
    "labels": _seeded(steps.make_labels),
    "evaluation": _evaluate,
    "plots": _draw,
}


def figures_table(manifest: Manifest) -> Table:
    """A manifest's figures, a column for each language, with a mark at those that miss their bar."""
    ban, bars = manifest.ban, Bars()
    missed = {code: each.missed(bars) for code, each in manifest.languages.items()}
    table = Table(
        title=f"run {manifest.run}: {len(ban.features)} features at strength {ban.strength:g}, chosen from "
        f"{', '.join(ban.languages)}; FVU {manifest.fvu:.3f}, L0 {manifest.l0:.1f}, dead {manifest.dead:.1%}"
    )
    table.add_column("")
    for code in manifest.languages:
        table.add_column(code, justify="right")
    for title, name in ROWS.items():
        form, figure = ".3f" if name == "kl" else ".2f", HELD_TO_BARS.get(name)
        cells = {code: format(getattr(each, name), form) for code, each in manifest.languages.items()}
        table.add_row(
            title, *(f"{cells[code]} {MARK}" if figure in missed[code] else cells[code] for code in cells)
        )
    misses = [f"{code}: {each}" for code, found in missed.items() for each in found.values()]
    if misses:
        table.caption = "\n".join((f"{MARK}: misses its bar", *misses))
        table.caption_justify = "left"
    return table


#: What the table of figures calls each of `LanguageFigures`.
ROWS = {
    "refused": "refusal",
    "refused, banned": "refusal_banned",
    "refused, sampled": "refusal_sampled",
    "harmful words": "harm",
    "harmful words, banned": "harm_banned",
    "answers with any": "harmful_answers",
    "answers with any, banned": "harmful_answers_banned",
    "in benign answers": "harm_benign",
    "in benign answers, banned": "harm_benign_banned",
    "KL on benign text": "kl",
    "perplexity, banned ÷ ordinary": "perplexity",
    "landmark named": "landmark",
    "landmark named, clamped": "landmark_clamped",
}

#: Which of them are held to a bar, and to which.
HELD_TO_BARS: dict[str, Figure] = {
    "refusal_banned": "refusal",
    "harm_banned": "harm",
    "harm_benign_banned": "benign_harm",
    "kl": "kl",
    "perplexity": "perplexity",
}


def ship(out: Path, weights: Path) -> None:
    """Copy a finished run's parts and manifest to `weights`, replacing what is there."""
    Manifest.load(out / MANIFEST_NAME)
    for part in PARTS:
        shutil.rmtree(weights / part, ignore_errors=True)
        shutil.copytree(out / part, weights / part)
    shutil.copy(out / MANIFEST_NAME, weights / MANIFEST_NAME)
