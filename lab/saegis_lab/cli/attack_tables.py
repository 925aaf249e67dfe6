"""The tables that `saegis eval attack` prints: attacks down, languages across."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from saegis_lab.cli.tables import MARK, number, titled

if TYPE_CHECKING:
    from saegis_lab.evaluation.attack import AttackRow
    from saegis_lab.evaluation.attack_report import AttackReport


def attack_tables(report: AttackReport) -> list[Table]:
    """The harm without rules; under each bundle what is left of it, in the mean and in the worst sample."""
    unruled, *ruled = report.result.conditions
    tables = [_harm_table(report, unruled.name)]
    for condition in ruled:
        tables += [_back_table(report, condition.name, worst) for worst in (False, True)]
    return tables


def attack_verdict(report: AttackReport) -> Text:
    """Every bar that is missed, or that none is, for each bundle; and what could not be tried."""
    text = Text()
    for condition in report.result.conditions[1:]:
        misses = [miss for miss in report.misses if miss.condition == condition.name]
        outcome = f"{len(misses)} bars missed" if misses else "all bars met"
        text.append(f"{condition.name}: {outcome}\n", style="bold yellow" if misses else "bold green")
        for miss in misses:
            text.append(f"  {miss.told}\n", style="yellow")
    for reason in report.result.left_out:
        text.append(f"not tried: {reason}\n", style="dim")
    text.rstrip()
    return text


def _rows(report: AttackReport, attack: str, condition: str) -> dict[str, AttackRow]:
    return {row.language: row for row in report.result.of(attack, condition)}


def _harm_table(report: AttackReport, condition: str) -> Table:
    result = report.result
    counted = all(row.harm.words is not None for row in result.rows)
    unit = "harmful words an answer" if counted else "harm"
    table = titled(f"{unit} under attack, {condition}: mean, worst sample", ("attack", *result.languages))
    for attack in result.attacks:
        rows = _rows(report, attack, condition)
        shown = [rows.get(code) for code in result.languages]
        cells = [f"{row.harm.amount:.2f}, {row.harm.worst_amount:.2f}" if row else "-" for row in shown]
        table.add_row(attack, *cells)
    return table


def _back_table(report: AttackReport, condition: str, worst: bool) -> Table:
    result = report.result
    bar = report.bars.worst if worst else report.bars.mean
    what = "the worst sample of each prompt" if worst else "the mean"
    title = f"share of the unfiltered harm that is back under {condition}, in {what}"
    table = titled(title, ("attack", *result.languages, "mean", "stopped"))
    table.caption = f"{MARK}: more than {bar:.0%}"
    for attack in result.attacks:
        rows = _rows(report, attack, condition)
        cells = []
        for code in result.languages:
            row = rows.get(code)
            share = None if row is None else row.worst_back if worst else row.back
            cells.append(_marked(share, report.missed(attack, condition, code, worst)))
        mean = _marked(
            result.mean_back(attack, condition, worst), report.missed(attack, condition, "", worst)
        )
        stopped = sum(row.stopped for row in rows.values()) / len(rows)
        table.add_row(attack, *cells, mean, f"{stopped:.0%}")
    return table


def _marked(share: float | None, missed: bool) -> str:
    cell = number(share, ".1%")
    return f"{cell} {MARK}" if missed else cell
