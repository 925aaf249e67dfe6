"""The command `saegis features usage`: which features fire most, live, and which more or less than before."""

from __future__ import annotations

import math
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.connection import Connection
from saegis.cli.output import USAGE, console, fail, notes, print_json, titled
from saegis.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Client, FeatureUsage, UsageBaseline, UsageReport

EPILOG = """
[bold]Examples[/bold]

saegis features usage

saegis features usage --window 7d --once

saegis features usage --window 1d --by change --save monday.json

saegis features usage --baseline monday.json --by change --json

The server counts every feature at one of so many steps if it was started with --usage-every, and the
watched ones at every token. [bold]trend[/bold] is the rate over that of as long a time before, or over the
baseline's: in colour where it has changed for sure, which takes account of how many features there are. On
a terminal the table is renewed: f, m, x, l and c order it by firings, mean, maximum, last firing and change;
q ends it.
"""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_COLUMNS = ("index", "label", "fired", "rate", "trend", "mean", "max", "last")


class Order(StrEnum):
    """Which features come first."""

    FIRED = "fired"
    MEAN = "mean"
    MAX = "max"
    LAST_FIRED = "last_fired"
    CHANGE = "change"


class Tokens(StrEnum):
    """Which tokens count."""

    ALL = "all"
    PROMPT = "prompt"
    COMPLETION = "completion"


#: The keys that order the table while it is live.
_KEYS = {"f": Order.FIRED, "m": Order.MEAN, "x": Order.MAX, "l": Order.LAST_FIRED, "c": Order.CHANGE}


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of the server."""

    sae: str
    watched: bool
    phase: Tokens
    order: Order
    limit: int
    window: float | None
    tenant_class: str
    baseline: UsageBaseline | None
    saves: bool

    def ask(self, client: Client) -> UsageReport:
        """Ask the server."""
        return client.get_feature_usage(
            sae=self.sae,
            source="watched" if self.watched else "sampled",
            phase=self.phase.value,
            order=self.order.value,
            limit=self.limit,
            window=None if self.watched else self.window,
            tenant_class=self.tenant_class,
            baseline=self.baseline,
            make_baseline=self.saves,
        )


@options.grouped
def usage(
    by: Annotated[Order, typer.Option(help="Which features come first.")] = Order.FIRED,
    window: Annotated[
        str, typer.Option(metavar="DURATION", help="How long ago to begin, such as 10m, 1h, 7d; or all.")
    ] = "1h",
    phase: Annotated[Tokens, typer.Option(help="Which tokens count.")] = Tokens.ALL,
    top: Annotated[int, typer.Option(help="How many features to show, at most.", min=1, max=1000)] = 20,
    watched: Annotated[
        bool, typer.Option("--watched", help="The watched features alone, at every token since the start.")
    ] = False,
    of_class: Annotated[
        str, typer.Option(metavar="NAME", help="The class of tenants whose texts count; with --watched.")
    ] = "",
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compare with the rates in this file.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rates of all features into this file.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, and end.")] = False,
    refresh: Annotated[
        float, typer.Option(min=0.5, max=3600.0, help="Seconds between two readings of a live table.")
    ] = 2.0,
    sae: options.Sae = "",
    json: options.Json = False,
    *,
    connection: Connection,
) -> None:
    """Show which features fire most in what the server writes, and whether more or less than before."""
    compared = None if baseline is None else _read_baseline(baseline)
    seconds = _duration(window)
    asked = _Asked(sae, watched, phase, by, top, seconds, of_class, compared, save is not None)
    live = not (once or json or save) and sys.stdout.isatty()
    with connection.client() as client:
        if live:
            _show_live(client, asked, refresh)
            return
        report = asked.ask(client)
    if save is not None and report.baseline is not None:
        _write_baseline(save, report.baseline)
    if json:
        print_json(replace(report, baseline=None))
    else:
        console().print(usage_table(report, asked.order))


def _duration(text: str) -> float | None:
    """The seconds of a duration; None for all. Ends the command for what is none."""
    if text == "all":
        return None
    found = _DURATION.fullmatch(text)
    if found is None or float(found[1]) == 0.0:
        raise fail(f"--window {text!r} is no duration", "write such as 30s, 10m, 1h, 7d, 2w, or all", USAGE)
    return float(found[1]) * _SECONDS[found[2]]


def _read_baseline(path: Path) -> UsageBaseline:
    from saegis import UsageBaseline

    try:
        return UsageBaseline.load(path)
    except (OSError, ValueError) as error:
        raise fail(sentence(error), "make one with saegis features usage --save FILE", USAGE) from error


def _write_baseline(path: Path, baseline: UsageBaseline) -> None:
    try:
        baseline.save(path)
    except OSError as error:
        raise fail(f"{path} cannot be written: {sentence(error)}", "name another file with --save") from error
    notes().print(f"wrote {path}", style="dim", markup=False, soft_wrap=True)


def _show_live(client: Client, asked: _Asked, refresh: float) -> None:
    """Show the table until q or Ctrl-C, and order it anew at a key."""
    caption = "order by (f)irings, (m)ean, ma(x)imum, (l)ast, (c)hange; (q)uit"
    try:
        with _keys() as pressed, Live(console=console(), screen=True, auto_refresh=False) as shown:
            while True:
                table = usage_table(asked.ask(client), asked.order)
                table.caption = Text(caption, style="dim")
                shown.update(table, refresh=True)
                key = pressed(refresh)
                if key == "q":
                    return
                asked = replace(asked, order=_KEYS.get(key, asked.order))
    except KeyboardInterrupt:
        return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits for a key for some seconds at most; "" for none. Keys come at once and are not shown."""
    try:
        import termios
        import tty
    except ImportError:  # there is no such terminal on Windows
        yield _slept
        return
    if not sys.stdin.isatty():
        yield _slept
        return
    terminal = sys.stdin.fileno()
    before: Any = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return os.read(terminal, 1).decode("ascii", "replace") if ready else ""

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _slept(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def usage_table(report: UsageReport, order: Order) -> Table:
    """One row for each feature, with what the numbers are of."""
    period = f"{report.start_time:%Y-%m-%d %H:%M:%S} to {report.end_time:%H:%M:%S} UTC"
    every = "every token" if report.sampled_every == 1 else f"one of {report.sampled_every} steps"
    tokens = "" if report.tokens is None else f"{report.tokens} tokens, "
    title = f"{report.sae} at {report.site}, {period}, by {order.value.replace('_', ' ')}"
    table = titled(title, _COLUMNS, [name for name in _COLUMNS if name != "label"])
    table.caption = Text(f"{tokens}{every}; {report.fired_count} features fired")
    for each in report:
        table.add_row(
            str(each.feature.index),
            Text(each.feature.label, style="red" if each.feature.harmful else ""),
            str(each.fired),
            _number(each.rate, "{:.3%}"),
            _trend(each),
            _number(each.mean_activation, "{:.2f}"),
            _number(each.max_activation, "{:.2f}"),
            "-" if each.last_fired_time is None else f"{each.last_fired_time:%m-%d %H:%M:%S}",
        )
    return table


def _trend(usage: FeatureUsage) -> Text:
    """How the rate compares with the one before."""
    if usage.log_rate_ratio is None:
        return Text("-")
    times = f"x{math.exp(usage.log_rate_ratio):.3g}"
    if not usage.sure_log_rate_ratio:
        return Text(times, style="dim")
    return Text(times, style="bold yellow" if usage.sure_log_rate_ratio > 0.0 else "bold cyan")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
