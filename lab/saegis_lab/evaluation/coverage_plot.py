"""The plot of coverage: a heat map of recall, features down and languages across, with the set below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.coverage import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

DOTS_PER_INCH = 150
#: Ends dark and bright alike for colour-blind readers.
_COLOURS = "cividis"
#: Above this share the ground is bright.
_BRIGHT = 0.5


def plot_coverage(result: Coverage, path: Path) -> None:
    """Write the recall of every feature, and the tokens and texts that the set covers, by language, as a PNG.

    Languages in which the features were found stand first and are marked.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = [code for code in result.languages if code in result.found_in]
    languages = found + [code for code in result.languages if code not in found]
    features = [[each.recall[code] for code in languages] for each in result.features]
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
    _heat(upper, features, [str(each.feature) for each in result.features])
    _heat(lower, whole, ["any: tokens", "any: texts"])
    upper.set_title(f"share of {result.wanted} tokens on which a feature fires", fontsize=9)
    upper.set_ylabel("feature", fontsize=9)
    upper.tick_params(labelbottom=False)
    lower.set_xticks(range(len(languages)), [f"{code} ✓" if code in found else code for code in languages])
    if found:
        lower.set_xlabel("✓ found in this language", fontsize=8)
        for axes in (upper, lower) if len(found) < len(languages) else ():
            axes.axvline(len(found) - 0.5, color="white", linewidth=2.5)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


def _heat(axes: Axes, shares: Sequence[Sequence[float]], names: Sequence[str]) -> None:
    """One block of cells, each with its share in per cent."""
    axes.imshow(shares, cmap=_COLOURS, vmin=0.0, vmax=1.0, aspect="auto")
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
