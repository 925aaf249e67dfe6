"""The plot of a run's filter: what a user receives in each language without it, under a ban and under it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.filtered import NOTHING
from saegis_lab.evaluation.plots import AFTER, BEFORE, panels_of, save
from saegis_lab.filters.card import WHOLE
from saegis_lab.polyglot.filter_figures import BANNED, Received, RunFilter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 5.6
_BANNED, _STOPPED = "#E69F00", "#56B4E9"


def plot_filter(made: RunFilter, path: Path) -> None:
    """Write, by language and sampled: harmful words an answer, and which harmful prompts are refused or
    ended. Languages that took no part in the choice are marked."""
    figure, ((harm, refused),) = panels_of(1, (_WIDTH, _WIDTH), legend=False)
    plain, banned, whole = (made.parts[part].sampled for part in (NOTHING, BANNED, WHOLE))
    for offset, colour, figures, label in (
        (-0.27, BEFORE, plain, "no policy"),
        (0.0, _BANNED, banned, "a ban"),
        (0.27, AFTER, whole, "the filter"),
    ):
        heights = [received.harm for received in figures.values()]
        bars = harm.bar(_places(plain, offset), heights, width=0.25, color=colour, label=label)
        written = [f"{height:.1f}" if height >= 0.05 else f"{height:.2g}" for height in heights]
        harm.bar_label(bars, written, fontsize=6, padding=1, color="#444444")
    harm.set_title("harmful words an answer to a harmful prompt")
    for offset, figures, label in ((-0.2, plain, "no policy"), (0.2, whole, "the filter")):
        shares = [received.refused for received in figures.values()]
        ended = [received.stopped for received in figures.values()]
        colour = BEFORE if figures is plain else AFTER
        refused.bar(_places(plain, offset), shares, width=0.38, color=colour, label=f"refused, {label}")
        if figures is whole:
            refused.bar(
                _places(plain, offset),
                ended,
                bottom=shares,
                width=0.38,
                color=_STOPPED,
                label="ended by a rule",
            )
    refused.set_ylim(0.0, 1.3)
    refused.set_title("share of harmful prompts refused or ended")
    for panel in (harm, refused):
        _languages(panel, made, plain)
    save(figure, path)


def _places(figures: Mapping[str, Received], offset: float) -> list[float]:
    return [place + offset for place in range(len(figures))]


def _languages(panel: Axes, made: RunFilter, figures: Mapping[str, Received]) -> None:
    """The languages below a panel, and its legend."""
    names = [code if code in made.chosen_from else f"{code}*" for code in figures]
    panel.set_xticks(range(len(names)), names)
    panel.set_xlabel("* took no part in the choice", fontsize=8)
    panel.grid(axis="x", visible=False)
    panel.margins(y=0.22)
    panel.legend(loc="upper right", frameon=False, fontsize=8, ncols=3)
