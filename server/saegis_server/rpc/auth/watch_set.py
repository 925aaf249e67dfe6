"""The watch set: the features whose firing is counted, which the operator and the policies in force name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from saegis_server.engine.api import Engine
from saegis_server.engine.counts import Firing, Observed
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.steering.rows import Probe
from saegis_server.steering.site import Site
from saegis_server.telemetry.features import MOST_FEATURES, FeatureName, FeatureSeries
from saegis_server.telemetry.tenants import OTHER


def named_feature(text: str, catalog: Catalog) -> FoundFeature:
    """The feature that a text of the form SAE:INDEX names, or INDEX where there is one SAE.

    Raises CatalogError for one that the catalog does not have.
    """
    sae, _, index = text.rpartition(":")
    return catalog.by_index(catalog.sae(sae, "watch_features"), int(index), "watch_features")


def features_of(policies: PolicySet) -> Iterator[FoundFeature]:
    """The features that policies name, in rules in whatever mode, candidates among them; some come again."""
    for policy in (*policies.policies, *policies.candidates):
        for rule in policy.rules.values():
            written = (claim.to for claim in rule.claims if claim.to is not None)
            for selected in (*rule.targets, *rule.readings, *written):
                if selected.feature is not None:
                    yield selected.feature


#: The key of what is active at every token, so that its firings are the tokens that were read.
_TOKENS = "tokens"


def _token_counter(observed: Sequence[Observed]) -> Observed | None:
    """What counts the tokens at which these are read, beside them; None where there is no room for it."""
    sites = Counter(each.site for each in observed)
    if not sites:
        return None
    site, features = min(sites.items(), key=lambda each: each[1])
    nothing = torch.zeros_like(observed[0].probe.read)
    always = Probe(_TOKENS, nothing, nothing, gate_bias=1.0, value_bias=1.0)
    return Observed(site, always) if features < MOST_FEATURES else None


class WatchSet:
    """Has the engine observe the watch set and its series shown, whatever comes in force."""

    def __init__(
        self, engine: Engine, catalog: Catalog, series: FeatureSeries, own: Sequence[FoundFeature] = ()
    ) -> None:
        """`own`: the operator's, which come before those of policies."""
        self._engine, self._series, self._own = engine, series, tuple(own)
        self._catalog = catalog
        self._names: dict[tuple[Site, str], FeatureName] = {}
        self._since: dict[tuple[Site, str], int] = {}
        #: How often what is watched was set.
        self.turn = 0
        self._rest = {
            (loaded.site, loaded.sae.digest): FeatureName(str(loaded.site), loaded.id, OTHER)
            for loaded in catalog.entries
        }
        self.watch(())

    def watch(self, features: Iterable[FoundFeature]) -> None:
        """Watch these beside the operator's own, as many as there is room for. Any thread may call it."""
        wanted = {(each.site, each.probe().key): each for each in (*self._own, *features)}
        named = dict(list(wanted.items())[:MOST_FEATURES])
        names = {
            place: FeatureName(str(each.site), each.loaded.id, str(each.index))
            for place, each in named.items()
        }
        turn = self.turn + 1
        self._since = {place: self._since.get(place, turn) for place in names}
        recorded = {names[place]: bool(each.max_activation) for place, each in named.items()}
        observed = [Observed(each.site, each.probe(), each.max_activation) for each in named.values()]
        if (counting := _token_counter(observed)) is not None:
            observed.append(counting)
        self._series.show(recorded, self._rest.values(), len(wanted) - len(named))
        self._engine.observe(observed)
        # Only now: before, a request may be read in part by the time that the engine observes.
        self._names, self.turn = names, turn

    def name(self, site: Site, key: str) -> FeatureName | None:
        """What series call a feature, watched or not; None for what is no feature, such as a direction."""
        _, _, rest = key.partition(":")
        return self._names.get((site, key)) or self._rest.get((site, rest.rpartition(":")[0]))

    def feature(self, site: Site, key: str) -> FoundFeature | None:
        """The feature with the probe of this key at a site; None for a direction."""
        return self._catalog.by_probe(site, key)

    def throughout(
        self, turn: int, firing: Mapping[tuple[Site, str], Firing]
    ) -> dict[tuple[Site, str], Firing]:
        """What was counted in a request of the features that were watched from its beginning to its end.

        turn: that of the time when it was decided.
        """
        since = self._since
        return {place: found for place, found in firing.items() if since.get(place, turn + 1) <= turn}

    def read(self, firing: Mapping[tuple[Site, str], Firing]) -> tuple[int, int]:
        """At how many tokens of the prompt and of the answers the watched features were read; 0 where there
        was no room to count that."""
        found = next((found for (_, key), found in firing.items() if key == _TOKENS), None)
        return (0, 0) if found is None else (found[0].tokens, found[1].tokens)

    def fired(self, firing: Mapping[tuple[Site, str], Firing]) -> dict[FeatureName, Firing]:
        """What the watched features did, by their names."""
        names = self._names
        return {names[place]: found for place, found in firing.items() if place in names}
