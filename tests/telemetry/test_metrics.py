"""The Prometheus series, scraped from a server that has served."""

import urllib.request
from urllib.error import URLError

import pytest
from prometheus_client import CollectorRegistry

import saegis
from saegis_server.engine.api import Receipt, RequestFinished, SiteReceipt, Timings, Usage
from saegis_server.telemetry.http import MetricsEndpoint
from saegis_server.telemetry.metrics import Metrics
from tests.rpc import tiny
from tests.rpc.harness import running


def test_a_scrape_tells_what_was_served() -> None:
    with running() as server, saegis.Client(server.target) as client:
        ban = saegis.ban(saegis.feature(7, sae="first"))
        client.generate("the river", max_tokens=5, temperature=0.0, steering=[ban])
        url = f"http://127.0.0.1:{server.address.metrics_port}/metrics"
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    method = "/saegis.v1.GenerationService/Generate"
    assert lines[f'saegis_requests_total{{code="OK",method="{method}"}}'] == "1.0"
    assert lines["saegis_generation_tokens_total"] == "5.0"
    for seconds in ("time_to_first_token_seconds", "inter_token_latency_seconds", "queue_seconds"):
        assert float(lines[f"saegis_{seconds}_count"]) == 1.0
    assert lines["saegis_requests_running"] == "0.0"
    assert lines["saegis_serving"] == "1.0"
    assert float(lines["saegis_prompt_tokens_total"]) > 1.0
    assert f'saegis_steering_tokens_edited_total{{site="{tiny.FIRST_SITE}"}}' in lines


def test_a_generation_is_counted_once() -> None:
    metrics = Metrics()
    site = SiteReceipt(tiny.FIRST_SITE, 1, 0, 1, 2, 30, 4, 0.5)
    ended = RequestFinished(Usage(10, 21, 3, 30), Receipt("", True, (site,)), Timings(0.5, 0.25, 2.0))
    metrics.count_generation(ended, [11, 10, 0])

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"saegis_{name}", labels)

    assert value("prompt_tokens_total") == 10.0
    assert value("generation_tokens_total") == 21.0
    assert value("cached_tokens_total") == 3.0
    assert value("queue_seconds_sum") == 0.5
    assert value("time_to_first_token_seconds_sum") == 0.75
    assert value("inter_token_latency_seconds_count") == 2.0
    assert value("inter_token_latency_seconds_sum") == pytest.approx(2.0 / 10 + 2.0 / 9)
    assert value("steering_tokens_edited_total", site="layers.0.resid_post") == 30.0
    assert value("steering_bans_fired_total", site="layers.0.resid_post") == 4.0
    assert value("feature_watches_total", site="layers.0.resid_post") == 2.0
    assert value("steering_relative_norm_sum", site="layers.0.resid_post") == 0.5


def test_the_endpoint_frees_its_port() -> None:
    registry = CollectorRegistry()
    endpoint = MetricsEndpoint(registry, "127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint(registry, "127.0.0.1", endpoint.port)
    endpoint.close()
    with pytest.raises(URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics")
    MetricsEndpoint(registry, "127.0.0.1", endpoint.port).close()
