"""Plots of evaluations, as PNG files: of bans, of clamps, and of where features fire."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.ban import BanResult, BanRow
from saegis_lab.evaluation.calibration import BanReport
from saegis_lab.evaluation.clamp import ClampResult, ClampRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from saegis_lab.evaluation.coverage import Coverage

DOTS_PER_INCH = 150
#: Okabe and Ito's colours, which colour-blind readers tell apart; their yellow is too pale for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
#: A colour map from dark to bright for colour-blind readers too; above this share its colours are bright.
_HEAT, _BRIGHT = "cividis", 0.5
_MARKERS = "osD^vPX*"
BEFORE, AFTER = "#9AA5B1", "#0072B2"
_WORST_RATIO = 100.0
_PANEL_WIDTH, _PANEL_HEIGHT = 3.7, 3.1


def plot_ban(report: BanReport, path: Path) -> None:
    """Write harm by language without the ban and under its calibrated strength, else its greatest.

    With several strengths, also harm and divergence over strength. One row of panels for each temperature.
    """
    result, calibration = report.result, report.calibration
    several = len(result.strengths) > 1
    bars_width = max(3.4, 0.6 * len(result.languages) + 0.9)
    widths = (bars_width, _PANEL_WIDTH, _PANEL_WIDTH) if several else (bars_width,)
    figure, grid = panels_of(len(result.decodings), widths, legend=several)
    for decoding, panels in zip(result.decodings, grid, strict=True):
        drawn = f" ({decoding})" if len(result.decodings) > 1 else ""
        temperature = decoding.temperature
        _bars(panels[0], result, report.strength, temperature)
        panels[0].set_title(f"harm by language{drawn}")
        if not several:
            continue
        _strength_lines(panels[1], result, temperature, _harm, with_none=True)
        panels[1].set_title("harm over strength")
        _strength_lines(panels[2], result, temperature, lambda row: row.kl, with_none=False)
        panels[2].set_title("KL on benign text, nats a token")
        if calibration is not None:
            _limit(panels[2], calibration.max_kl)
    if several:
        _legend(figure, grid[0][1], len(result.languages))
    save(figure, path)


def plot_clamp(result: ClampResult, path: Path) -> None:
    """Write, over the clamp's value and by language: mentions, perplexity of the text, and repetition."""
    figure, grid = panels_of(1, (_PANEL_WIDTH,) * 3, legend=True)
    mentions, perplexity, repetition = grid[0]
    _value_lines(mentions, result, lambda row: row.mentions)
    mentions.set_title(f"answers that name the {result.words}")
    mentions.set_ylim(-0.03, 1.03)
    _value_lines(perplexity, result, lambda row: row.text.perplexity_ratio)
    perplexity.set_title("perplexity, × that without the clamp")
    _ratio_axis(perplexity)
    _value_lines(repetition, result, lambda row: row.text.repetition)
    repetition.set_title("share of repeated 3-grams")
    repetition.set_ylim(-0.03, 1.03)
    _legend(figure, mentions, len(result.languages))
    save(figure, path)


def plot_coverage(result: Coverage, path: Path) -> None:
    """Write the recall of every feature, and the tokens and texts that the set covers, by language, as a PNG.

    Languages in which the features were found stand first and are marked.
    """
    from matplotlib.figure import Figure

    sources = [code for code in result.languages if code in result.found_in]
    languages = sources + [code for code in result.languages if code not in sources]
    features = [[feature.recall[code] for code in languages] for feature in result.features]
    whole = [
        [result.languages[code].tokens for code in languages],
        [result.languages[code].texts for code in languages],
    ]
    figure = Figure(
        figsize=(1.9 + 0.62 * len(languages), 1.7 + 0.3 * (len(features) + 2)),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    upper, lower = figure.subplots(2, 1, height_ratios=(max(len(features), 1), 2))
    _heat(upper, features, [str(feature.feature) for feature in result.features])
    _heat(lower, whole, ["any: tokens", "any: texts"])
    upper.set_title(f"share of {result.wanted} tokens on which a feature fires", fontsize=9)
    upper.set_ylabel("feature", fontsize=9)
    upper.tick_params(labelbottom=False)
    lower.set_xticks(range(len(languages)), [f"{code} ✓" if code in sources else code for code in languages])
    if sources:
        lower.set_xlabel("✓ found in this language", fontsize=8)
        for axes in (upper, lower) if len(sources) < len(languages) else ():
            axes.axvline(len(sources) - 0.5, color="white", linewidth=2.5)
    save(figure, path)


def _bars(panel: Axes, result: BanResult, strength: float, temperature: float) -> None:
    """Harm by language, without the ban and under it, side by side."""
    languages = [code for code in result.languages if result.row(code, None, temperature).harmful]
    for offset, colour, shown, label in (
        (-0.2, BEFORE, None, "without the ban"),
        (0.2, AFTER, strength, f"ban, strength {strength:g}"),
    ):
        heights = [_harm(result.row(code, shown, temperature)) or 0.0 for code in languages]
        places = [place + offset for place in range(len(languages))]
        bars = panel.bar(places, heights, width=0.38, color=colour, label=label)
        written = [f"{height:.2f}" if height else "0" for height in heights]
        panel.bar_label(bars, written, fontsize=7, padding=1, color="#444444")
    panel.set_xticks(range(len(languages)), languages)
    panel.set_ylabel("share of harmful words")
    panel.grid(axis="x", visible=False)
    panel.margins(y=0.22)
    panel.legend(loc="upper right", frameon=False, fontsize=8, ncols=2)


def _strength_lines(
    panel: Axes,
    result: BanResult,
    temperature: float,
    measure: Callable[[BanRow], float | None],
    *,
    with_none: bool,
) -> None:
    """A line for each language over the strengths; the value without the ban stands at their left."""
    strengths = sorted(result.strengths)
    for number, code in enumerate(result.languages):
        values = [measure(result.row(code, strength, temperature)) for strength in strengths]
        none = measure(result.row(code, None, temperature)) if with_none else None
        _line(panel, strengths, values, none, number, code)
    _value_axis(panel, strengths, with_none)
    panel.set_xlabel("strength of the ban")
    panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))


def _limit(panel: Axes, height: float) -> None:
    """A dotted line that the panel's lines should stay under."""
    bottom, top = panel.get_ylim()
    panel.set_ylim(bottom, max(top, 1.15 * height))
    grey = "#52606D"
    panel.axhline(height, color=grey, linewidth=1.0, linestyle=":")
    panel.annotate(
        "limit", (0.01, height), xycoords=("axes fraction", "data"), va="bottom", fontsize=7, color=grey
    )


def _value_lines(panel: Axes, result: ClampResult, measure: Callable[[ClampRow], float | None]) -> None:
    """A line for each language over the clamp's values; the one without the clamp stands at their left."""
    for number, code in enumerate(result.languages):
        values = [measure(result.row(code, value)) for value in result.values]
        _line(panel, result.values, values, measure(result.row(code, None)), number, code)
    _value_axis(panel, result.values, True)
    unit = "× its maximum" if result.unit == "max_activation" else "feature units"
    panel.set_xlabel(f"feature {result.feature}, {unit}")


def _line(
    panel: Axes,
    places: Sequence[float],
    values: Sequence[float | None],
    none: float | None,
    number: int,
    code: str,
) -> None:
    """One language's line; what is None is left out. `none`, the value without an edit, is a hollow mark."""
    colour = _COLOURS[number % len(_COLOURS)]
    marker = _MARKERS[number % len(_MARKERS)]
    there = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
    panel.plot(
        [place for place, _ in there],
        [value for _, value in there],
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.5,
        linestyle="-" if number < len(_COLOURS) else "--",
        label=code,
    )
    if none is not None:
        panel.plot(
            [_none_place(places)], [none], color=colour, marker=marker, markersize=5.5, markerfacecolor="none"
        )


def _value_axis(panel: Axes, places: Sequence[float], with_none: bool) -> None:
    labels = [f"{place:g}" for place in places]
    for number, (earlier, place) in enumerate(pairwise(places), start=1):
        if place - earlier < 0.09 * (places[-1] - places[0]) and labels[number - 1]:
            # It would run into the label at its left.
            labels[number] = ""
    ticks = list(places)
    if with_none:
        ticks, labels = [_none_place(places), *ticks], ["none", *labels]
    panel.set_xticks(ticks, labels)


def _none_place(places: Sequence[float]) -> float:
    """Where the value without an edit stands on the axis: a little before the first value."""
    span = places[-1] - places[0]
    return places[0] - (0.14 * span if span else 1.0)


def _harm(row: BanRow) -> float | None:
    return None if row.harmful is None else row.harmful.harm


def panels_of(rows: int, widths: Sequence[float], *, legend: bool) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` rows of panels whose widths are in inches."""
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(sum(widths), rows * _PANEL_HEIGHT + (0.3 if legend else 0.0)),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=list(widths))
    panels = [list(row) for row in grid]
    for panel in (cell for row in panels for cell in row):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#E4E7EB", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.tick_params(labelsize=8)
        panel.title.set_fontsize(10)
    return figure, panels


def _legend(figure: Figure, panel: Axes, languages: int) -> None:
    """One legend of the languages below all panels, in rows of at most 12."""
    rows = math.ceil(languages / 12)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=math.ceil(languages / rows),
        frameon=False,
        fontsize=9,
    )


def _ratio_axis(panel: Axes) -> None:
    """A logarithmic axis with a line at 1. It ends at 100: text above that is broken in any case."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panel.set_yscale("log")
    bottom, top = panel.get_ylim()
    if bottom > 0.0:  # It is not where there is nothing to show.
        panel.set_ylim(bottom, min(top, _WORST_RATIO))
    panel.axhline(1.0, color=BEFORE, linewidth=1.0, zorder=0)
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())


def _heat(axes: Axes, shares: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """One block of cells, each with its share in per cent."""
    axes.imshow(shares, cmap=_HEAT, vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(shares[0])))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            axes.text(
                column,
                row,
                f"{share:.0%}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if share > _BRIGHT else "white",
            )


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]
