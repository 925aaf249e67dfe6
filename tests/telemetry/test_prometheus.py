"""A real Prometheus, fed by a real server, has data for the queries of the dashboards."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import saegis
from scripts.draw_panels import Span, asked, draw
from scripts.draw_panels import prometheus as scraping
from scripts.gen_dashboards import DASHBOARDS
from tests.rpc.harness import Running, eventually
from tests.rpc.test_governor import ask, denied, edit, ruled, write
from tests.telemetry.queries import dashboards, metrics_of
from tests.telemetry.test_rules import CONDITIONS, RULES
from tests.tools import program

pytestmark = pytest.mark.slow
#: A server on a CPU has no device, and nobody is unknown to one that is open to all.
WITHOUT_DATA = {"saegis_device_memory_used_bytes", "saegis_authentication_failures_total"}


def result(url: str, query: str) -> list[dict[str, Any]]:
    return asked(url, "query", query=query)


@contextmanager
def prometheus(folder: Path, *servers: Running) -> Iterator[str]:
    """A Prometheus with the shipped rules that scrapes servers each second; its address."""
    ports = [server.address.metrics_port or 0 for server in servers]
    with scraping(Path(program("prometheus")), folder, ports) as url:
        yield url


def scrapes(url: str) -> int:
    """How often it has scraped each server at least; 0 while it does not answer."""
    try:
        found = result(url, 'min(count_over_time(up{job="saegis"}[5m]))')
    except OSError:
        return 0
    return int(found[0]["value"][1]) if found else 0


def test_dashboards_have_data(full_server: Running, tmp_path: Path) -> None:
    began = time.time()
    refusing = CONDITIONS.replace("mode: shadow, ", "").replace("over: answer", "over: prompt")
    with (
        ruled(write(tmp_path, RULES, "r"), write(tmp_path, CONDITIONS, "s")) as (stops, stub),
        ruled(write(tmp_path, refusing, "t")) as (refuses, refused),
        prometheus(tmp_path, full_server, stops, refuses) as url,
        saegis.Client(full_server.target) as client,
    ):
        stub.Generate(ask("the river", 8))
        denied(stub, ask("the river", 2, edit(3, 1.0)))
        denied(refused, ask("the river", 2))

        def answered_and_scraped() -> bool:
            client.generate("the river", max_tokens=3, temperature=0.0)
            return scrapes(url) >= 4 and bool(result(url, "job:saegis_queue_seconds:p95_5m"))

        eventually(answered_and_scraped, 60)
        empty = set()
        for shown in dashboards().values():
            for panel in shown["panels"]:
                for asked in panel["targets"]:
                    query = asked["expr"].replace("$__rate_interval", "5m").replace("$__range", "5m")
                    if not result(url, query.replace("$job", "saegis")):
                        empty |= metrics_of(query)
        assert empty == WITHOUT_DATA
        for name in DASHBOARDS:
            draw(url, name, Span(began, time.time()), tmp_path / "panels.png")
            assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
        assert not result(url, 'ALERTS{alertname="SaegisDown"}')
