"""What a scrape is sent, against prometheus_client: the same to the byte, in every format."""

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from saegis_server.telemetry import exposition
from saegis_server.telemetry.exposition import Exposition
from saegis_server.telemetry.features import FeatureName
from tests.telemetry.test_bounded import Traffic

#: What nobody asks for in particular, Prometheus 2 and 3, and a client of another escaping.
ACCEPTED = (
    "",
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4",
    "text/plain;version=1.0.0;escaping=dots",
)


class Kept(Collector):
    """Families as they were at one time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = list(registry.collect())

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def kept(registry: CollectorRegistry) -> CollectorRegistry:
    """A registry of what another one holds now."""
    made = CollectorRegistry()
    made.register(Kept(registry))
    return made


def agree(written: Exposition, registry: CollectorRegistry) -> None:
    """Compare all formats."""
    for accept in ACCEPTED:
        encode, kind = choose_encoder(accept)
        assert written.text(accept) == (kind, encode(registry))


def test_it_is_what_the_library_writes_whatever_is_counted() -> None:
    traffic = Traffic()
    registry = CollectorRegistry()
    for series in (traffic.metrics.rules, traffic.metrics.features):
        registry.register(series)
    written = Exposition(registry)
    for requests in (0, 1, 0, 30):
        for _ in range(requests):
            traffic.request()
        agree(written, registry)
        held = kept(traffic.metrics.registry)
        agree(Exposition(held), held)
    names = {FeatureName("layers.0.resid_post", "sae", str(number)): True for number in (3, 999)}
    traffic.metrics.features.show(names, [], left_out=0)
    traffic.metrics.rules.show({})
    agree(written, registry)
    assert b'feature="999"' in written.text("")[1]


@given(st.dictionaries(st.text(max_size=9), st.floats(), max_size=5), st.text(max_size=20))
def test_whatever_labels_and_numbers_are(values: dict[str, float], described: str) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("some", described, ("one", "other"), registry=registry)
    counter = Counter("counted", described, registry=registry)
    written = Exposition(registry)
    for label, value in values.items():
        gauge.labels(label, "x").set(value)
        counter.inc(abs(value) if math.isfinite(value) else 1e30)
        agree(written, registry)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_MOST_SERIES", 10)
    registry = CollectorRegistry()
    gauge = Gauge("some", "Some.", ("name",), registry=registry)
    written = Exposition(registry)
    for number in range(100):
        gauge.labels(str(number)).set(number)
        written.text(f"application/openmetrics-text;version=1.{number}.0")
        written.text("")
        gauge.remove(str(number))
    agree(written, registry)
    assert len(written._formats) <= exposition._MOST_FORMATS
    assert all(len(each._series) <= 12 for each in written._formats.values())
