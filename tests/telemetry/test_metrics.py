"""The Prometheus series, scraped from a server that has served."""

import urllib.request
from urllib.error import URLError

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

import saegis
from saegis.version import __version__
from saegis_server.engine.api import FinishReason, RequestFinished
from saegis_server.engine.receipts import Receipt, SiteReceipt, Timings, Usage
from saegis_server.telemetry.http import MetricsEndpoint
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.tenants import MOST_CLASSES, TenantClasses
from tests.rpc import tiny
from tests.rpc.harness import eventually, failure, running, send_bytes
from tests.telemetry.promtool import check_metrics
from tests.telemetry.scrape import scrape

METHOD = "/saegis.v1.GenerationService/Generate"


def test_a_scrape_tells_what_was_served() -> None:
    with running() as server, saegis.Client(server.target) as client:
        ban = saegis.ban(saegis.feature(7, sae="first"))
        client.generate("the river", max_tokens=5, temperature=0.0, steering=[ban])
        found = scrape(server)
    assert found.total("saegis_requests_total", method=METHOD, code="OK") == 1.0
    assert found.total("saegis_generation_tokens_total", tenant_class="_other") == 5.0
    for seconds in ("time_to_first_token_seconds", "queue_seconds"):
        assert found.total(f"saegis_{seconds}_count") == 1.0
    assert found.total("saegis_inter_token_latency_seconds_count", steered="true") == 1.0
    assert found.total("saegis_inter_token_latency_seconds_count", steered="false") == 0.0
    assert found.total("saegis_requests_running") == 0.0
    assert found.total("saegis_serving") == 1.0
    assert found.total("saegis_prompt_tokens_total") == len(server.services.prompts.text("the river"))
    assert found.total("saegis_answers_total", finish_reason="length") == 1.0
    assert found.total("saegis_answers_total") == 1.0
    assert found.total("saegis_build_info", version=__version__) == 1.0
    assert found.total("saegis_model_info", model="tiny", dtype="float32") == 1.0
    assert found.total("saegis_sae_info", sae="first", site=str(tiny.FIRST_SITE)) == 1.0
    assert found.total("process_resident_memory_bytes") > 1e6
    assert list(found.samples("saegis_steering_tokens_edited_total", site=str(tiny.FIRST_SITE)))


def test_without_policies_nothing_says_that_none_could_be_loaded() -> None:
    with running() as server:
        assert not list(scrape(server).samples("saegis_policy_last_reload_successful"))


def test_every_status_has_its_plain_name() -> None:
    with running() as server, grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="unheard.of")
        assert failure(lambda: health.Check(asked)).code is grpc.StatusCode.NOT_FOUND
        with saegis.Client(server.target) as client, pytest.raises(saegis.InvalidArgument):
            client.generate("", max_tokens=0)
        assert send_bytes(channel, "/no.such/Method", b"").code is grpc.StatusCode.UNIMPLEMENTED
        found = scrape(server)
    told = {labels["code"] for labels, _ in found.samples("saegis_requests_total")}
    assert {"NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"} <= told
    assert told <= {status.name for status in grpc.StatusCode}


def test_a_cancelled_answer_is_counted_for_what_was_done() -> None:
    with running() as server, saegis.Client(server.target) as client:
        with client.stream("the river", max_tokens=1500, temperature=0.0) as pieces:
            next(iter(pieces))
        eventually(server.is_idle)
        eventually(lambda: scrape(server).total("saegis_answers_total") == 1.0)
        found = scrape(server)
    assert found.total("saegis_answers_total", finish_reason="cancelled") == 1.0
    assert 1.0 <= found.total("saegis_generation_tokens_total") < 1500.0


def test_promtool_finds_nothing_in_a_scrape() -> None:
    with running() as server, saegis.Client(server.target) as client:
        client.generate("the river", max_tokens=5, temperature=0.0)
        check_metrics(scrape(server).text)


def test_a_generation_is_counted_once() -> None:
    metrics = Metrics(TenantClasses({"paid": ("acme", "globex")}))
    site = SiteReceipt(tiny.FIRST_SITE, 1, 0, 1, 2, 30, 4, 0.5)
    usage, timings = Usage(10, 21, 3, 30), Timings(0.5, 0.25, 2.0)
    receipt, reasons = Receipt("", True, (site,)), (FinishReason.STOP,) * 3
    metrics.count_generation(RequestFinished(usage, receipt, timings, reasons, (11, 10, 0), 10), "globex")

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"saegis_{name}", labels)

    assert value("prompt_tokens_total", tenant_class="paid") == 10.0
    assert value("generation_tokens_total", tenant_class="paid") == 21.0
    assert value("generation_tokens_total", tenant_class="_other") == 0.0
    assert value("cached_tokens_total") == 3.0
    assert value("queue_seconds_sum") == 0.5
    assert value("time_to_first_token_seconds_sum") == 0.75
    assert value("inter_token_latency_seconds_count", steered="true") == 2.0
    assert value("inter_token_latency_seconds_sum", steered="true") == pytest.approx(2.0 / 10 + 2.0 / 9)
    assert value("steering_tokens_edited_total", site="layers.0.resid_post") == 30.0
    assert value("steering_bans_fired_total", site="layers.0.resid_post") == 4.0
    assert value("feature_watches_total", site="layers.0.resid_post") == 2.0
    assert value("steering_relative_norm_sum", site="layers.0.resid_post") == 0.5


def test_how_an_answer_ends_is_one_of_a_few_words() -> None:
    metrics = Metrics()
    metrics.count_answers(("stop", "stop", "SomeStrangeError", "refused"))
    counted = {
        sample.labels["finish_reason"]: sample.value
        for family in metrics.registry.collect()
        if family.name == "saegis_answers"
        for sample in family.samples
        if sample.value
    }
    assert counted == {"stop": 2.0, "error": 1.0, "refused": 1.0}


def test_a_tenant_has_one_class_of_a_few() -> None:
    classes = TenantClasses({"paid": ("acme", "globex"), "own": ("us",)})
    assert [classes.of(tenant) for tenant in ("acme", "us", "", "paid")] == [
        "paid",
        "own",
        "_other",
        "_other",
    ]
    with pytest.raises(ValueError, match="'acme' is of the classes paid and own"):
        TenantClasses({"paid": ("acme",), "own": ("acme",)})
    with pytest.raises(ValueError, match="at most 8"):
        TenantClasses({str(number): () for number in range(MOST_CLASSES + 1)})


def test_the_endpoint_frees_its_port() -> None:
    registry = CollectorRegistry()
    endpoint = MetricsEndpoint(registry, "127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint(registry, "127.0.0.1", endpoint.port)
    endpoint.close()
    with pytest.raises(URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/metrics")
    MetricsEndpoint(registry, "127.0.0.1", endpoint.port).close()
