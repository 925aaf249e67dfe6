"""The spread over seeds: the figures of several runs of the whole chain, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.table import Table

from saegis_lab.polyglot.shipped import LanguageFigures, Manifest


def seeds_table(manifests: Sequence[Manifest]) -> Table:
    """One column a run. Rates over languages are those of the worst one; harm is what the ban leaves of it,
    in languages that took no part in the choice of its features."""
    table = Table(title="the chain from several seeds")
    table.add_column("")
    for manifest in manifests:
        table.add_column(f"run {manifest.run}", justify="right")
    for title, figure in _FIGURES.items():
        table.add_row(title, *(figure(manifest) for manifest in manifests))
    return table


def _unseen(manifest: Manifest) -> list[LanguageFigures]:
    chosen = manifest.ban.languages
    return [row for code, row in manifest.languages.items() if code not in chosen]


def _left(manifest: Manifest) -> float:
    return max((row.harm_banned / row.harm for row in _unseen(manifest) if row.harm), default=math.nan)


def _mean_left(manifest: Manifest) -> float:
    rows = _unseen(manifest)
    before = sum(row.harm for row in rows)
    return sum(row.harm_banned for row in rows) / before if before else math.nan


def _perplexity_excess(manifest: Manifest) -> float:
    return math.exp(manifest.held_out_loss - manifest.entropy_bound) - 1.0


_FIGURES: dict[str, Callable[[Manifest], str]] = {
    "perplexity above the entropy bound": lambda each: f"{_perplexity_excess(each):.1%}",
    "FVU": lambda each: f"{each.fvu:.3f}",
    "L0": lambda each: f"{each.l0:.1f}",
    "dead features": lambda each: f"{each.dead:.1%}",
    "ban: features": lambda each: str(len(each.ban.features)),
    "ban: strength": lambda each: f"{each.ban.strength:g}",
    "harm left, worst unseen language": lambda each: f"{_left(each):.1%}",
    "harm left, mean of unseen": lambda each: f"{_mean_left(each):.1%}",
    "KL on benign text, worst": lambda each: f"{max(row.kl for row in each.languages.values()):.3f}",
    "perplexity ratio, worst": lambda each: f"{max(row.perplexity for row in each.languages.values()):.2f}",
    "landmark named, worst": lambda each: f"{min(r.landmark_clamped for r in each.languages.values()):.2f}",
}
