"""The plan: what a worker must know before it loads a model, as vLLM hands it on: plain values in its
`additional_config`, which is part of the key of what vLLM compiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from saegis.version import __version__
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity

#: Under which name it lies there.
KEY = "saegis"
#: The SAEs that decide by rank and are in this process, by their digests.
_dictionaries: dict[str, RankedDictionary] = {}


@dataclass(frozen=True)
class Plan:
    """Where texts may be steered and by how much, how many at once, of a model of so many layers.

    norms: the normalisations used at each site, in forward order. ranked: the SAEs of each site that decide
    by rank. saes: the digests of all, by which what was compiled with others is told apart.
    """

    norms: Mapping[Site, frozenset[Norm]]
    widths: Widths
    slots: int
    capacity: Capacity
    layers: int
    ranked: Mapping[Site, Sequence[RankedDictionary]] = field(default_factory=dict)
    saes: tuple[str, ...] = ()

    def told(self) -> dict[str, Any]:
        """What goes into `additional_config`; what decides by rank stays in this process."""
        _dictionaries.update({each.digest: each for at_site in self.ranked.values() for each in at_site})
        plain = {
            "version": __version__,
            "sites": {str(site): sorted(map(int, norms)) for site, norms in self.norms.items()},
            "stream": self.widths.stream,
            "own": {str(site): width for site, width in self.widths.own},
            "slots": self.slots,
            "capacity": asdict(self.capacity),
            "layers": self.layers,
            "ranked": {str(site): [each.digest for each in own] for site, own in self.ranked.items()},
            "saes": sorted(self.saes),
        }
        return {KEY: plain}

    @classmethod
    def of(cls, additional: Mapping[str, Any]) -> Plan:
        """The plan that an `additional_config` has. Raises KeyError for one without."""
        plain = additional[KEY]
        own = tuple((Site.parse(name), width) for name, width in plain["own"].items())
        return cls(
            {Site.parse(name): frozenset(map(Norm, norms)) for name, norms in plain["sites"].items()},
            Widths(plain["stream"], own),
            plain["slots"],
            Capacity(**plain["capacity"]),
            plain["layers"],
            {
                Site.parse(name): [_dictionaries[each] for each in own]
                for name, own in plain["ranked"].items()
            },
            tuple(plain["saes"]),
        )
