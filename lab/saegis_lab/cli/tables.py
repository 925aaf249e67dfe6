"""The tables that `saegis eval ban` and `saegis eval clamp` print, and the calibration's verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from saegis_lab.evaluation.ban import AnswerFigures, BanRow
    from saegis_lab.evaluation.calibration import BanReport, Figure
    from saegis_lab.evaluation.clamp import ClampResult, ClampRow
    from saegis_lab.evaluation.experiment import Decoding

_NOTHING = "-"
#: What stands behind a figure that misses its bar.
MARK = "!"


def ban_tables(report: BanReport) -> list[Table]:
    """For each temperature: all strengths side by side where there are several, then one strength in full."""
    tables = []
    for decoding in report.result.decodings:
        if len(report.result.strengths) > 1:
            tables.append(strengths_table(report, decoding))
        tables += [_kind_table(report, decoding, harmful=True), _kind_table(report, decoding, harmful=False)]
    return [table for table in tables if table.row_count]


def verdict(report: BanReport) -> Text:
    """The outcome of the calibration, the bars that each strength misses, and every other bar that is missed
    under the strength shown."""
    calibration = report.calibration
    if calibration is None:
        text = Text("not calibrated: no language has both harmful and benign prompts", style="yellow")
    else:
        style = "bold yellow" if calibration.strength is None else "bold green"
        text = Text.assemble((calibration.sentence, style))
        for tried in calibration.verdicts:
            for failure in tried.failures:
                text.append(f"\n  strength {tried.strength:g}: {failure}", style="dim")
    if report.warnings:
        text.append(f"\nwarning: under strength {report.strength:g} bars are missed", style="bold yellow")
        text.append(f": {_by_figure(report)}", style="yellow")
    for miss in report.warnings:
        note = "" if miss.judged or calibration is None else " (a language not judged)"
        text.append(f"\n  {miss.told}{note}", style="yellow")
    return text


def _by_figure(report: BanReport) -> str:
    """Which languages miss which bar under the strength shown, in a sentence."""
    languages: dict[str, dict[str, None]] = {}
    for miss in report.warnings:
        note = "" if miss.judged or report.calibration is None else " (not judged)"
        languages.setdefault(miss.figure.replace("_", " "), {})[f"{miss.language}{note}"] = None
    return "; ".join(f"{figure} in {', '.join(codes)}" for figure, codes in languages.items())


def clamp_tables(result: ClampResult) -> list[Table]:
    """Mentions, perplexity and repetition: values down, languages across."""
    measures: tuple[tuple[str, Callable[[ClampRow], float | None], str], ...] = (
        (f"share of answers that name the {result.words}", lambda row: row.mentions, ".0%"),
        ("perplexity, over that without the clamp", lambda row: row.text.perplexity_ratio, ".2f"),
        ("share of repeated 3-grams", lambda row: row.text.repetition, ".0%"),
    )
    return [_clamp_table(result, *measure) for measure in measures]


def _clamp_table(
    result: ClampResult, title: str, measure: Callable[[ClampRow], float | None], form: str
) -> Table:
    from saegis_lab.evaluation.clamp import value_name

    table = titled(f"{title}, {result.decoding}", ("value", *result.languages))
    for value in (None, *result.values):
        name = "none" if value is None else value_name(value, result.unit)
        cells = [number(measure(result.row(code, value)), form) for code in result.languages]
        table.add_row(name, *cells)
    return table


def strengths_table(report: BanReport, decoding: Decoding) -> Table:
    """Harm, and divergence in brackets: a row a language, a column a strength."""
    result = report.result
    strengths = (None, *sorted(result.strengths))
    names = ["no ban" if strength is None else f"strength {strength:g}" for strength in strengths]
    table = titled(
        f"harm in answers to harmful prompts (KL on benign text, nats a token), {decoding}",
        ("language", *names),
    )
    for code in result.languages:
        rows = [result.row(code, strength, decoding.temperature) for strength in strengths]
        table.add_row(code, *(_harm_and_kl(report, row) for row in rows))
    if report.misses:
        table.caption = f"{MARK}: misses its bar, {report.bars.goal}"
    return table


def _harm_and_kl(report: BanReport, row: BanRow) -> str:
    missed = report.missed(row.language, row.strength, row.temperature)
    harm = _NOTHING if row.harmful is None else marked(f"{row.harmful.harm:.3f}", "harm", missed)
    if row.strength is None:
        return harm
    return f"{harm} ({marked(number(row.kl, '.4f'), 'kl', missed)})"


def marked(cell: str, figure: str | None, missed: Collection[str]) -> str:
    """The cell of a figure, with a mark where the figure misses its bar."""
    return f"{cell} {MARK}" if figure in missed else cell


def _kind_table(report: BanReport, decoding: Decoding, *, harmful: bool) -> Table:
    """All figures of one kind of prompts, without the ban → under the shown strength."""
    result, strength = report.result, report.strength
    names = ["language", "harm", "answers with harm", "refused", "perplexity", "× benign", "repetition"]
    table = titled(
        f"{'harmful' if harmful else 'benign'} prompts, without the ban → strength {strength:g}, {decoding}",
        names if harmful else [*names, "KL"],
    )
    empty = 0
    for code in result.languages:
        plain, banned = (result.row(code, shown, decoding.temperature) for shown in (None, strength))
        before, after = (row.harmful if harmful else row.benign for row in (plain, banned))
        if before is not None and after is not None:
            missed = report.missed(code, strength, decoding.temperature)
            cells = _cells(before, after, missed, harmful=harmful)
            kl = [] if harmful else [marked(number(banned.kl, ".4f"), "kl", missed)]
            table.add_row(code, *cells, *kl)
            empty += after.text.empty
    table.caption = "× benign: over the perplexity of the benign answers without the ban"
    if any(miss.strength == strength for miss in report.misses):
        table.caption += f"; {MARK}: misses its bar, see below"
    if empty:
        table.caption += f"; {empty} answers under the ban are empty"
    return table


def _cells(
    before: AnswerFigures, after: AnswerFigures, missed: Collection[Figure], *, harmful: bool
) -> list[str]:
    ratio = _change(before.text.perplexity_ratio, after.text.perplexity_ratio, ".2f")
    return [
        marked(_change(before.harm, after.harm, ".3f"), "harm" if harmful else "benign_harm", missed),
        _change(before.harmful_answers, after.harmful_answers, ".0%"),
        marked(
            _change(before.refusal, after.refusal, ".0%"), "refusal" if harmful else "benign_refusal", missed
        ),
        _change(before.text.perplexity, after.text.perplexity, ".1f"),
        marked(ratio, "perplexity" if harmful else "benign_perplexity", missed),
        _change(before.text.repetition, after.text.repetition, ".0%"),
    ]


def titled(title: str, columns: Sequence[str], words: Collection[str] | None = None) -> Table:
    """An empty table with its title at the left. Columns are aligned right for numbers, except those named in
    `words`, by default the first."""
    words = columns[:1] if words is None else words
    table = Table(title=Text(title), title_justify="left", title_style="bold", caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    return table


def _change(before: float | None, after: float | None, form: str) -> str:
    cells = (number(before, form), number(after, form))
    return _NOTHING if set(cells) == {_NOTHING} else " → ".join(cells)


def number(value: float | None, form: str, unit: str = "") -> str:
    """The text of a figure; "-" where there is none."""
    return _NOTHING if value is None else f"{value:{form}}{unit}"
