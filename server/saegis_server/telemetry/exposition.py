"""The exposition: all metrics of a registry in the formats of Prometheus, at little cost for each scrape.

It is what prometheus_client writes, to the byte. But that writes the names and labels of every series anew,
which takes most of a scrape, and meanwhile the engine waits for Python's lock. Here they are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString as _float_to_text

#: A number as Prometheus writes it; the library does not say so to a type checker.
_number: Callable[[float], str] = _float_to_text
#: From a registry to its text, by prometheus_client.
Encode = Callable[[Collector], bytes]
#: How many formats are kept, and how many series of each: a client asks for any version, and series go away.
_MOST_FORMATS, _MOST_SERIES = 4, 8_192


class Exposition:
    """Writes a registry whose series have neither times nor exemplars. For one thread only.

    A family that a collector gives again, the same object, must be as it was.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._formats: dict[str, _Format] = {}

    def text(self, accept: str) -> tuple[str, bytes]:
        """The content type for a client that accepts this, as in HTTP, and all metrics."""
        encode, kind = choose_encoder(accept)
        if kind not in self._formats:
            if len(self._formats) == _MOST_FORMATS:
                self._formats.clear()
            self._formats[kind] = _Format(encode)
        return kind, self._formats[kind].text(self._registry.collect())


class _Family(Collector):
    """A registry of one family."""

    def __init__(self, family: Metric, samples: list[Sample]) -> None:
        self._family = copy(family)
        self._family.samples = samples

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Nothing(Collector):
    """A registry without any."""

    def collect(self) -> Iterator[Metric]:
        return iter(())


class _Format:
    """One format, and what is kept of it: the lines before each family, each series up to its value, and the
    families as they were written last."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._end = encode(_Nothing()).decode()
        self._heads: dict[tuple[str, str], str] = {}
        self._series: dict[tuple[str, ...], str] = {}
        self._written: dict[int, tuple[Metric, str]] = {}

    def text(self, families: Iterable[Metric]) -> bytes:
        """All of it."""
        if len(self._series) > _MOST_SERIES:
            self._series.clear()
        written = {}
        for family in families:
            before = self._written.get(id(family))
            is_same = before is not None and before[0] is family
            written[id(family)] = before if before is not None and is_same else (family, self._family(family))
        self._written = written
        return "".join((*(text for _, text in written.values()), self._end)).encode()

    def _family(self, family: Metric) -> str:
        head = family.name, family.type
        if head not in self._heads:
            self._heads[head] = self._by_library(family, [])
        lines, series = [self._heads[head]], self._series
        for sample in family.samples:
            # All samples of a name have the same labels in the same order.
            key = (sample.name, *sample.labels.values())
            if (begin := series.get(key)) is None:
                begin = series[key] = self._begin(family, sample)
            lines.append(f"{begin}{_number(sample.value)}\n")
        return "".join(lines)

    def _begin(self, family: Metric, sample: Sample) -> str:
        """A series as the library writes it, up to its value."""
        line = self._by_library(family, [sample]).removeprefix(self._heads[family.name, family.type])
        return line.removesuffix(f"{_number(sample.value)}\n")

    def _by_library(self, family: Metric, samples: list[Sample]) -> str:
        return self._encode(_Family(family, samples)).decode().removesuffix(self._end)
