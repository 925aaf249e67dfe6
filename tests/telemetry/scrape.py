"""What a server's metrics endpoint tells, read from outside."""

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.rpc.harness import Running


@dataclass(frozen=True)
class Scrape:
    """One scrape, as text and parsed."""

    text: str

    @property
    def families(self) -> dict[str, Metric]:
        """The metrics by name."""
        return {family.name: family for family in text_string_to_metric_families(self.text)}

    @property
    def series(self) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        """All series: their names and labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in self.families.values()
            for sample in family.samples
        }

    def samples(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The labels and values of the samples of a name that have at least these labels."""
        for family in self.families.values():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    yield sample.labels, sample.value

    def total(self, name: str, **labels: str) -> float:
        """The sum of those samples; fails where there is none."""
        values = [value for _, value in self.samples(name, **labels)]
        assert values, f"there is no {name} {labels}"
        return sum(values)


def scrape(server: Running) -> Scrape:
    """Scrape a server."""
    url = f"http://127.0.0.1:{server.address.metrics_port}/metrics"
    with urllib.request.urlopen(url) as answer:
        return Scrape(answer.read().decode())
