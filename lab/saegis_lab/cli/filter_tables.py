"""The tables that `saegis eval filter` prints: conditions down, languages across, and what misses its bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from saegis_lab.cli.tables import MARK, marked, number, titled

if TYPE_CHECKING:
    from saegis_lab.evaluation.experiment import Decoding
    from saegis_lab.evaluation.filter_bars import FilterFigure
    from saegis_lab.evaluation.filter_report import FilterReport
    from saegis_lab.evaluation.filtered import FilterRow, HarmFigures, ReceivedFigures

_STOPPED = "stopped, harmful prompts"
_WHOLE = "the same, of answers that were not stopped"
_EMPTY = "answers without a text, harmful prompts"
_OF_STOPS = (_STOPPED, _WHOLE, _EMPTY)
#: A table's title, the figure of a row, its form, and the bar that it is held to.
Measure = tuple[str, "Callable[[FilterRow], float | None]", str, "FilterFigure | None"]


def filter_tables(report: FilterReport) -> list[Table]:
    """For each temperature a table for each figure; those about stops only where something was stopped."""
    received = [figures for row in report.result.rows for figures in (row.harmful, row.benign) if figures]
    stops = any(figures.stopped or figures.empty for figures in received)
    return [
        _table(report, decoding, measure)
        for decoding in report.result.decodings
        for measure in _measures(report, decoding)
        if stops or measure[0] not in _OF_STOPS
    ]


def filter_verdict(report: FilterReport) -> Text:
    """What each condition misses, in every language, or that it misses nothing."""
    text = Text()
    for condition in report.result.conditions[1:]:
        misses = [miss for miss in report.misses if miss.condition == condition.name]
        outcome = (
            f"{condition.name}: {len(misses)} bars missed" if misses else f"{condition.name}: all bars met"
        )
        text.append(f"{outcome}\n", style="bold yellow" if misses else "bold green")
        for miss in misses:
            text.append(f"  {miss.told}\n", style="yellow")
    text.rstrip()
    return text


def _measures(report: FilterReport, decoding: Decoding) -> list[Measure]:
    rows = [row.harmful for row in report.result.rows if row.harmful is not None]
    counted = bool(rows) and rows[0].harm.words is not None
    unit = "harmful words an answer" if counted else "harm"
    measures: list[Measure] = [
        (f"{unit}, mean", _of_harm(lambda harm: harm.amount), ".3f", "harm"),
        ("answers with any harm", _of_harm(lambda harm: harm.harmful_answers), ".1%", None),
        ("refused, harmful prompts", _of(True, lambda figures: figures.refused), ".0%", None),
        (_STOPPED, _of(True, lambda figures: figures.stopped), ".0%", None),
        ("refused or stopped, benign prompts", _of(False, lambda figures: figures.lost), ".1%", "lost"),
        ("KL on benign text, nats a token", lambda row: row.kl, ".4f", "kl"),
        ("× perplexity of answers to harmful prompts", _of(True, _ratio), ".2f", "perplexity"),
        (_WHOLE, _of(True, _whole_ratio), ".2f", None),
        ("× perplexity of answers to benign prompts", _of(False, _ratio), ".2f", "benign_perplexity"),
        (_EMPTY, _of(True, lambda figures: figures.empty), ".0f", None),
    ]
    if decoding.samples > 1:
        title = f"{unit}, the worst of {decoding.samples} samples"
        measures.insert(1, (title, _of_harm(lambda harm: harm.worst_amount), ".3f", None))
    return measures


def _table(report: FilterReport, decoding: Decoding, measure: Measure) -> Table:
    title, figure_of, form, barred = measure
    result = report.result
    columns = [code + (" (chose)" if code in result.chosen_from else "") for code in result.languages]
    table = titled(f"{title}; {decoding}", ("condition", *columns))
    for condition in result.conditions:
        cells = []
        for code in result.languages:
            row = result.row(code, condition.name, decoding.temperature)
            missed = report.missed(code, condition.name, decoding.temperature)
            cells.append(marked(number(figure_of(row), form), barred, missed))
        table.add_row(condition.name, *cells)
    if any(miss.figure == barred and miss.temperature == decoding.temperature for miss in report.misses):
        table.caption = f"{MARK}: misses its bar, see below"
    return table


def _of(
    harmful: bool, figure: Callable[[ReceivedFigures], float | None]
) -> Callable[[FilterRow], float | None]:
    """The figure of a row's answers to one kind of prompts."""

    def of_row(row: FilterRow) -> float | None:
        received = row.harmful if harmful else row.benign
        return None if received is None else figure(received)

    return of_row


def _of_harm(figure: Callable[[HarmFigures], float]) -> Callable[[FilterRow], float | None]:
    return _of(True, lambda received: figure(received.harm))


def _ratio(received: ReceivedFigures) -> float | None:
    return received.text.perplexity_ratio


def _whole_ratio(received: ReceivedFigures) -> float | None:
    return None if received.whole is None else received.whole.perplexity_ratio
