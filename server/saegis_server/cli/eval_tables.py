"""The tables that `saegis eval ban` and `saegis eval clamp` print, and the calibration's verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from saegis_server.evaluation.ban import AnswerFigures, BanResult, BanRow
    from saegis_server.evaluation.calibration import BanReport, Calibration
    from saegis_server.evaluation.clamp import ClampResult, ClampRow
    from saegis_server.evaluation.decoding import Decoding

_NOTHING = "-"


def ban_tables(report: BanReport) -> list[Table]:
    """For each temperature: all strengths side by side where there are several, then one strength in full."""
    tables = []
    for decoding in report.result.decodings:
        if len(report.result.strengths) > 1:
            tables.append(strengths_table(report.result, decoding))
        tables += [_kind_table(report, decoding, harmful=True), _kind_table(report, decoding, harmful=False)]
    return [table for table in tables if table.row_count]


def verdict(calibration: Calibration | None) -> Text:
    """The outcome of the calibration, and what each strength that is not enough falls short of."""
    if calibration is None:
        return Text("not calibrated: no language has both harmful and benign prompts", style="yellow")
    style = "bold yellow" if calibration.strength is None else "bold green"
    told = Text(calibration.sentence, style=style)
    for each in calibration.verdicts:
        for failure in each.failures:
            told.append(f"\n  strength {each.strength:g}: {failure}", style="dim")
    return told


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
    from saegis_server.evaluation.clamp import value_name

    table = _table(f"{title}, {result.decoding}", ("value", *result.languages))
    for value in (None, *result.values):
        name = "none" if value is None else value_name(value, result.unit)
        cells = [_number(measure(result.row(code, value)), form) for code in result.languages]
        table.add_row(name, *cells)
    return table


def strengths_table(result: BanResult, decoding: Decoding) -> Table:
    """Harm, and divergence in brackets: a row a language, a column a strength."""
    strengths = (None, *sorted(result.strengths))
    names = ["no ban" if strength is None else f"strength {strength:g}" for strength in strengths]
    table = _table(
        f"harm in answers to harmful prompts (KL on benign text, nats a token), {decoding}",
        ("language", *names),
    )
    for code in result.languages:
        rows = [result.row(code, strength, decoding.temperature) for strength in strengths]
        table.add_row(code, *(_harm_and_kl(row) for row in rows))
    return table


def _harm_and_kl(row: BanRow) -> str:
    harm = _NOTHING if row.harmful is None else f"{row.harmful.harm:.3f}"
    return harm if row.strength is None else f"{harm} ({_number(row.kl, '.4f')})"


def _kind_table(report: BanReport, decoding: Decoding, *, harmful: bool) -> Table:
    """All figures of one kind of prompts, without the ban → under the shown strength."""
    result, strength = report.result, report.strength
    names = ["language", "harm", "answers with harm", "refused", "perplexity", "× benign", "repetition"]
    table = _table(
        f"{'harmful' if harmful else 'benign'} prompts, without the ban → strength {strength:g}, {decoding}",
        names if harmful else [*names, "KL"],
    )
    empty = 0
    for code in result.languages:
        plain, banned = (result.row(code, each, decoding.temperature) for each in (None, strength))
        before, after = (row.harmful if harmful else row.benign for row in (plain, banned))
        if before is not None and after is not None:
            cells = _cells(before, after)
            table.add_row(code, *(cells if harmful else [*cells, _number(banned.kl, ".4f")]))
            empty += after.text.empty
    table.caption = "× benign: over the perplexity of the benign answers without the ban"
    if empty:
        table.caption += f"; {empty} answers under the ban are empty"
    return table


def _cells(before: AnswerFigures, after: AnswerFigures) -> list[str]:
    return [
        _change(before.harm, after.harm, ".3f"),
        _change(before.harmful_answers, after.harmful_answers, ".0%"),
        _change(before.refusal, after.refusal, ".0%"),
        _change(before.text.perplexity, after.text.perplexity, ".1f"),
        _change(before.text.perplexity_ratio, after.text.perplexity_ratio, ".2f"),
        _change(before.text.repetition, after.text.repetition, ".0%"),
    ]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold", caption_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left")
    return table


def _change(before: float | None, after: float | None, form: str) -> str:
    told = (_number(before, form), _number(after, form))
    return _NOTHING if set(told) == {_NOTHING} else " → ".join(told)


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)
