"""The series by feature: how often each watched feature fired, was banned and was edited, and how strongly.

There is room for a certain number of series, whatever is watched. The more features there are, the less their
series tell apart: first no tenant classes, then no feature in the histograms, then no phases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from saegis_server.engine.counts import STRENGTHS, Acted, Fired
from saegis_server.telemetry.tenants import ALL, OTHER, TenantClasses

#: The most features that are watched.
MOST_FEATURES = 256
#: About how many series there may be by feature.
ROOM = 800
_PHASES = ("prompt", "completion")
#: What is counted beside the events that have series: tokens at which a feature was read.
READ = "read"
_EVENTS = {
    "fired": "Tokens on which a watched feature was active, as the model had it.",
    "banned": "Tokens on which a ban found a feature active and put it out.",
    "edited": "Tokens on which an edit or a rule changed the value of a feature.",
}
#: A histogram's series: its buckets with that of no limit, its sum and its count.
_OF_A_HISTOGRAM = len(STRENGTHS) + 3


class FeatureName(NamedTuple):
    """A feature as its series name it; OTHER instead of its index for all that have no series of an SAE."""

    site: str
    sae: str
    feature: str

    @property
    def rest(self) -> FeatureName:
        """What stands for the features of its SAE that have no series."""
        return self._replace(feature=OTHER)


class FeatureUse(NamedTuple):
    """At how many tokens a feature was active, of how many at which it was read; strength: the sum of its
    values there over the largest recorded, None where that is not known."""

    fired: int
    tokens: int
    strength: float | None


@dataclass(frozen=True, slots=True)
class _Detail:
    """What series tell apart."""

    classes: bool
    histograms: bool
    phases: bool


#: From the finest to what always has room.
_DETAILS = (
    _Detail(True, True, True),
    _Detail(False, True, True),
    _Detail(False, False, True),
    _Detail(False, False, False),
)


class _Count:
    """What was counted of a feature, by tenant class and phase: events, and of its strength how many tokens
    lie in each bucket, and the sum."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str, str], int] = {}
        self.buckets: dict[str, list[float]] = {phase: [0.0] * (len(STRENGTHS) + 2) for phase in _PHASES}

    def add(self, event: str, phase: str, tenant_class: str, tokens: int) -> None:
        key = event, phase, tenant_class
        self.events[key] = self.events.get(key, 0) + tokens

    def total(self, event: str, phase: str, tenant_class: str) -> int:
        """How many tokens; ALL adds up."""
        if ALL not in (phase, tenant_class):
            return self.events.get((event, phase, tenant_class), 0)
        return sum(
            tokens
            for (known, at, of), tokens in self.events.items()
            if known == event and phase in (at, ALL) and tenant_class in (of, ALL)
        )

    def use(self, phases: Sequence[str], tenant_class: str, with_maximum: bool) -> FeatureUse:
        """What was counted at tokens of these phases."""
        fired, tokens = (
            sum(self.total(event, phase, tenant_class) for phase in phases) for event in ("fired", READ)
        )
        known = with_maximum and tenant_class == ALL
        return FeatureUse(fired, tokens, sum(self.buckets[phase][-1] for phase in phases) if known else None)

    def strengths(self, phase: str) -> list[float]:
        """Tokens by bucket and the sum; of both phases where `phase` is ALL."""
        rows = [self.buckets[each] for each in _PHASES if phase in (each, ALL)]
        return [sum(column) for column in zip(*rows, strict=True)]


class FeatureSeries(Collector):
    """Counters and histograms of the features that are watched; those of a set that is replaced go away. Safe
    to use from any thread.
    """

    def __init__(self, tenants: TenantClasses) -> None:
        self._tenants, self._lock = tenants, Lock()
        self._counts: dict[FeatureName, _Count] = {}
        self._with_maximum: frozenset[FeatureName] = frozenset()
        self._left_out = 0
        self._collected: tuple[Metric, ...] | None = None

    def show(self, features: Mapping[FeatureName, bool], saes: Iterable[FeatureName], left_out: int) -> None:
        """Count for these features from now on.

        features: at most MOST_FEATURES; whether each has a recorded maximum. saes: what stands for the other
        features of each SAE. left_out: how many more were to be watched.
        """
        with self._lock:
            named = (*features, *saes)
            self._counts = {name: self._counts.get(name) or _Count() for name in named}
            self._with_maximum = frozenset(name for name, recorded in features.items() if recorded)
            self._left_out = left_out
            self._collected = None

    def fired(
        self, features: Mapping[FeatureName, Sequence[Fired]], tenant: str, read: Sequence[int] = (0, 0)
    ) -> None:
        """Count on how many tokens of one request features fired: of its prompt and of its answers.

        read: how many of these were read.
        """
        tenant_class = self._tenants.of(tenant)
        with self._lock:
            self._collected = None
            for name, phases in features.items():
                if (count := self._counts.get(name)) is None:
                    continue
                for phase, tokens in zip(_PHASES, read, strict=True):
                    count.add(READ, phase, tenant_class, tokens)
                for phase, found in zip(_PHASES, phases, strict=True):
                    if not found.tokens:
                        continue
                    count.add("fired", phase, tenant_class, found.tokens)
                    buckets = count.buckets[phase]
                    # What lies between two bounds is what is above the lower one and not above the other.
                    above = (found.tokens, *found.above, 0)
                    for place, (low, high) in enumerate(pairwise(above)):
                        buckets[place] += low - high
                    buckets[-1] += found.strength

    def used(
        self, site: str, sae: str, phases: Sequence[str], tenant_class: str = ""
    ) -> dict[int, FeatureUse]:
        """How the watched features of an SAE were used since they are watched, by index.

        tenant_class: whose texts count; all of them if it is empty.
        """
        with self._lock:
            return {
                int(name.feature): count.use(phases, tenant_class or ALL, name in self._with_maximum)
                for name, count in self._counts.items()
                if (name.site, name.sae) == (site, sae) and name.feature.isdecimal()
            }

    def acted(self, event: str, name: FeatureName, acted: Acted, tenant: str) -> None:
        """Count on how many tokens of one request a feature was banned or edited."""
        tenant_class = self._tenants.of(tenant)
        with self._lock:
            count = self._counts.get(name) or self._counts.get(name.rest)
            if count is not None:
                self._collected = None
                for phase, tokens in zip(_PHASES, acted, strict=True):
                    count.add(event, phase, tenant_class, tokens)

    def collect(self) -> Iterator[Metric]:
        """The families, at a scrape; the same ones as long as nothing was counted."""
        # Whoever reads them may be slow, and nobody who counts may wait for that.
        with self._lock:
            if self._collected is None:
                self._collected = tuple(self._families())
            families = self._collected
        yield from families

    def _families(self) -> Iterator[Metric]:
        detail = next((each for each in _DETAILS if self._size(each) <= ROOM), _DETAILS[-1])
        phases = _PHASES if detail.phases else (ALL,)
        classes = self._tenants.names if detail.classes else (ALL,)
        for event, description in _EVENTS.items():
            labels = (*FeatureName._fields, "phase", "tenant_class")
            family = CounterMetricFamily(f"saegis_feature_{event}_tokens", description, labels=labels)
            for name, count in self._counts.items():
                if name.feature == OTHER and event == "fired":
                    continue
                for phase in phases:
                    for tenant_class in classes:
                        value = count.total(event, phase, tenant_class)
                        family.add_metric((*name, phase, tenant_class), value)
            yield family
        yield self._histograms(detail)
        yield GaugeMetricFamily(
            "saegis_features_left_out",
            "Features that policies or the operator name, for which there is no room among the watched.",
            value=self._left_out,
        )

    def _size(self, detail: _Detail) -> int:
        """How many series there are with so much detail."""
        phases = len(_PHASES) if detail.phases else 1
        classes = len(self._tenants.names) if detail.classes else 1
        histograms = len(self._with_maximum) if detail.histograms else len(self._sites())
        events = len(_EVENTS) * len(self._counts) * phases * classes
        return events + histograms * phases * _OF_A_HISTOGRAM

    def _sites(self) -> dict[FeatureName, None]:
        """What stands for all features of each SAE that has some with a maximum."""
        return dict.fromkeys(name._replace(feature=ALL) for name in sorted(self._with_maximum))

    def _histograms(self, detail: _Detail) -> Metric:
        family = HistogramMetricFamily(
            "saegis_feature_strength_ratio",
            "Of tokens on which a watched feature fires, its value over the largest recorded.",
            labels=(*FeatureName._fields, "phase"),
        )
        groups = {name: [name] for name in sorted(self._with_maximum)}
        if not detail.histograms:
            groups = {group: [name for name in groups if name[:2] == group[:2]] for group in self._sites()}
        for group, names in groups.items():
            for phase in _PHASES if detail.phases else (ALL,):
                rows = [self._counts[name].strengths(phase) for name in names]
                *buckets, strength = (sum(column) for column in zip(*rows, strict=True))
                bounds = [*(f"{bound:g}" for bound in STRENGTHS), "+Inf"]
                cumulated = [(bound, sum(buckets[: place + 1])) for place, bound in enumerate(bounds)]
                family.add_metric((*group, phase), cumulated, strength)
        return family
