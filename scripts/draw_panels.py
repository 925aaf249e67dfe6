"""Draw the panels of the Grafana dashboards from what a real Prometheus has of a real server under traffic.

python -m scripts.draw_panels [--seconds 240] [--folder docs]     needs Debian's package prometheus
"""

import argparse
import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saegis_server.rpc.server.process import ServerProcess
from scripts.gen_dashboards import DASHBOARDS, Panel
from scripts.panel_traffic import Callers

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "deploy" / "prometheus" / "rules"
#: How panels stand: so many abreast, each so wide and high in inches, at so many dots an inch.
ABREAST, WIDE, HIGH, DOTS = 4, 3.4, 2.1, 72
#: The most series that a legend names, and the most rows of a table.
MOST_NAMED, MOST_ROWS = 5, 10
#: What divides values, and what stands behind them, by Grafana's name of a unit.
UNITS = {"s": (1.0, " s"), "percentunit": (0.01, " %"), "bytes": (1e6, " MB"), "reqps": (1.0, "/s")}


@contextmanager
def prometheus(program: Path | str, folder: Path, ports: Sequence[int]) -> Iterator[str]:
    """A Prometheus with the shipped rules that scrapes servers of this machine each second; its address."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "*.yml")],
        "scrape_configs": [
            {
                "job_name": "saegis",
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = (
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'measured'}",
        f"--web.listen-address={address}",
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)  # noqa: S603 - made here
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str, path: str, **arguments: object) -> list[dict[str, Any]]:
    """The series that Prometheus answers a query with. Raises OSError where it does not answer."""
    query = urllib.parse.urlencode(arguments)
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}") as answer:  # noqa: S310 - on this machine
        series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return series


@dataclass(frozen=True)
class Span:
    """The time that is shown, in seconds since the epoch."""

    begin: float
    end: float

    def query(self, expression: str) -> str:
        """A panel's query for this time, and for all jobs."""
        whole = f"{self.end - self.begin:.0f}s"
        for variable, value in (("$__rate_interval", "30s"), ("$__range", whole), ("$job", ".*")):
            expression = expression.replace(variable, value)
        return expression


def named(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name by the pattern of its legend."""
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), legend).strip()


def draw(url: str, dashboard: str, span: Span, file: Path) -> None:
    """Draw the panels of a dashboard into a file, from the data that a Prometheus has."""
    title, panels = DASHBOARDS[dashboard]
    rows = -(-len(panels) // ABREAST)
    figure = Figure(figsize=(ABREAST * WIDE, rows * HIGH + 0.4), dpi=DOTS, layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, ABREAST, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        axes.set_title(textwrap.fill(panel.title, 48), fontsize=7.5, loc="left")
        axes.tick_params(labelsize=6)
        (_table if panel.kind == "table" else _lines)(axes, url, panel, span)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.savefig(file, format="png", pil_kwargs={"optimize": True})


def _lines(axes: Axes, url: str, panel: Panel, span: Span) -> None:
    divisor, unit = UNITS.get(panel.unit, (1.0, ""))
    found = []
    for legend, expression in panel.queries.items():
        arguments = {"query": span.query(expression), "start": span.begin, "end": span.end, "step": 2}
        for series in asked(url, "query_range", **arguments):
            points = [(float(when) - span.begin, float(value) / divisor) for when, value in series["values"]]
            found.append((named(legend, series["metric"]), points))
    found.sort(key=lambda pair: -max((value for _, value in pair[1] if value == value), default=0.0))
    for place, (name, points) in enumerate(found):
        times, values = zip(*points, strict=True)
        # Matplotlib leaves out names that begin with an underscore, as the series' _other does.
        axes.plot(times, values, linewidth=0.9, label=f" {name}" if place < MOST_NAMED else None)
    axes.set_xlim(0.0, span.end - span.begin)
    axes.set_ylim(bottom=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds) // 60}:{int(seconds) % 60:02}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}{unit}")
    axes.grid(linewidth=0.3)
    if found:
        axes.legend(fontsize=5, loc="upper left", framealpha=0.6)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", fontsize=7, color="grey")


def _table(axes: Axes, url: str, panel: Panel, span: Span) -> None:
    axes.set_axis_off()
    rows = []
    for legend, expression in panel.queries.items():
        for series in asked(url, "query", query=span.query(expression), time=span.end):
            rows.append((float(series["value"][1]), named(legend, series["metric"])))
    for place, (value, name) in enumerate(sorted(rows, reverse=True)[:MOST_ROWS]):
        height = 0.94 - place / MOST_ROWS
        axes.text(0.0, height, name, transform=axes.transAxes, fontsize=6.5, va="top")
        axes.text(1.0, height, f"{value:,.0f}", transform=axes.transAxes, fontsize=6.5, va="top", ha="right")


def told(what: str, done: int, total: int) -> None:
    """Tell how far the server's start is."""
    print(f"{what} ({done} of {total})", file=sys.stderr)


def main() -> None:
    """Serve, ask, scrape and draw."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=240.0, help="how long callers ask")
    options.add_argument("--folder", type=Path, default=ROOT / "docs", help="where the pictures go")
    given = options.parse_args()
    if (program := shutil.which("prometheus")) is None:
        raise SystemExit("there is no prometheus: apt-get install prometheus")
    with tempfile.TemporaryDirectory(prefix="saegis-panels-") as temporary:
        folder = Path(temporary)
        callers = Callers(folder)
        with (
            ServerProcess(callers.options, told) as server,
            prometheus(program, folder, [server.metrics_port]) as url,
        ):
            begin = time.time()
            asyncio.run(callers.ask(server.target, given.seconds))
            span = Span(begin, time.time())
            for name in DASHBOARDS:
                draw(url, name, span, given.folder / f"panels-{name}.png")
            server.stop()
    print(f"{datetime.now(UTC):%F %T}: {', '.join(DASHBOARDS)} drawn into {given.folder}")


if __name__ == "__main__":
    main()
