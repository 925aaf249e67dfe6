"""A hostile client's edits, random and crafted: they try to undo what the operator bans and bounds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from saegis_server.engine.api import SamplingParams
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import INFINITY, Phase, Probe, Redirection
from saegis_server.steering.site import Site

#: Stands for an edit's field until its place in the request is known.
_PATH = ""
_VALUES = (0.0, 0.1, -0.1, 1.0, -1.0, 5.0, -5.0, 80.0, -80.0, 1e4, -1e4, 1e6, -1e6)


@dataclass(frozen=True)
class Bound:
    """Between which values the operator holds a feature; a clamp holds it at one."""

    feature: int
    low: float = -INFINITY
    high: float = INFINITY


@dataclass(frozen=True)
class Redirected:
    """Features that the operator redirects, and to which feature of the same SAE or to which unit vector."""

    features: tuple[int, ...]
    factor: float
    to: int | Tensor
    strength: float = 0.0
    threshold: float = 0.0

    def target(self, sae: SparseAutoencoder) -> Probe:
        """What is written."""
        return sae.probe(self.to) if isinstance(self.to, int) else Probe.direction(self.to)


@dataclass(frozen=True)
class Held:
    """What the operator holds of one SAE: banned features, bounds of others, and what he redirects."""

    site: Site
    sae: str
    banned: tuple[int, ...] = ()
    bounds: tuple[Bound, ...] = ()
    redirected: tuple[Redirected, ...] = ()

    @property
    def held(self) -> tuple[int, ...]:
        """The features that are banned or bounded."""
        return (*self.banned, *(bound.feature for bound in self.bounds))

    @property
    def features(self) -> tuple[int, ...]:
        """All with which something is done."""
        targets = (each.to for each in self.redirected if isinstance(each.to, int))
        return (*self.held, *(i for each in self.redirected for i in each.features), *targets)


@dataclass(frozen=True)
class Try:
    """One request of the hostile client."""

    tenant: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    edits: tuple[RequestEdit, ...]


class Client:
    """Makes requests that try to undo what is held, the same ones for the same seed."""

    def __init__(
        self, catalog: Catalog, sites: tuple[Site, ...], held: tuple[Held, ...], bos: int, seed: int
    ) -> None:
        self._catalog, self._sites, self._held, self._bos = catalog, sites, held, bos
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._crafts = (
            self._clamp_held,
            self._clamp_neighbours,
            self._along_held,
            self._nearly_along_held,
            self._sum_to_held,
            self._later_site,
            self._many_small,
            self._anything,
            self._along_target,
            self._sum_to_target,
            self._along_sources,
            self._ban_target,
            self._redirect_again,
        )
        self._redirecting = [each for each in held if each.redirected]

    def tries(self, count: int) -> Iterator[Try]:
        """So many requests."""
        pick = self._random
        for _ in range(count):
            edits = tuple(pick.choice(self._crafts)()) if pick.random() < 0.95 else ()
            length = pick.choice((1, 2, 3, 3, 4, 5, 8, 8, 12, 40))
            sampling = SamplingParams(
                temperature=pick.choice((0.0, 0.0, 1.0)),
                seed=pick.randrange(100),
                max_tokens=pick.choice((1, 1, 2, 2, 4)),
                n=pick.choice((1, 1, 1, 1, 2)),
                ignore_eos=True,
            )
            first = self._bos if pick.random() < 0.3 else pick.randrange(256)
            prompt = (first, *(pick.randrange(256) for _ in range(length - 1)))
            named = tuple(replace(edit, path=f"steering.edits[{index}]") for index, edit in enumerate(edits))
            yield Try(pick.choice(("lab", "lab", "public")), prompt, sampling, named)

    # -- what it tries --------------------------------------------------------------------------------

    def _clamp_held(self) -> list[RequestEdit]:
        held = self._random.choice(self._held)
        return [self._on_feature(held.sae, self._random.choice(held.features))]

    def _clamp_neighbours(self) -> list[RequestEdit]:
        """The features whose decoder rows lie closest to a held feature's encoder row."""
        held = self._random.choice(self._held)
        sae = self._catalog.sae(held.sae, "sae").sae
        read = sae.probe(self._random.choice(held.features)).read
        near = (sae.W_dec @ read).topk(10).indices.tolist()
        chosen = [index for index in near if index not in held.features]
        count = self._random.randint(1, 4)
        return self._distinct([self._on_feature(held.sae, index) for index in chosen[:count]])

    def _along_held(self) -> list[RequestEdit]:
        held = self._random.choice(self._held)
        probe = self._held_probe(held)
        vector = self._random.choice((probe.read, probe.write)) * self._random.choice((1.0, -1.0))
        return [self._on_vector(held.site, vector)]

    def _nearly_along_held(self) -> list[RequestEdit]:
        held = self._random.choice(self._held)
        vector = self._held_probe(held).read
        noise = self._noise() * float(vector.norm()) * self._random.choice((1e-4, 1e-2, 0.1, 0.5))
        return [self._on_vector(held.site, vector + noise)]

    def _sum_to_held(self) -> list[RequestEdit]:
        """Vectors that are far from a held one, each by itself, and add up to it."""
        held = self._random.choice(self._held)
        vector = self._held_probe(held).read
        unit = vector / vector.norm()
        apart = 3.0 * self._noise()
        return [
            self._on_vector(held.site, unit + apart, Op.ADD, 40.0),
            self._on_vector(held.site, unit - apart, Op.ADD, 40.0),
        ]

    def _later_site(self) -> list[RequestEdit]:
        held = self._random.choice(self._held)
        later = [site for site in self._sites if self._sites.index(site) > self._sites.index(held.site)]
        site = self._random.choice(later or list(self._sites))
        return [self._on_vector(site, self._held_probe(held).write)]

    def _many_small(self) -> list[RequestEdit]:
        held = self._random.choice(self._held)
        vector = self._held_probe(held).read
        return [
            self._on_vector(held.site, vector + (0.05 * index + 0.01) * self._noise(), Op.ADD, 0.5)
            for index in range(8)
        ]

    def _along_target(self) -> list[RequestEdit]:
        """Along what a redirect writes, or near it, mostly the other way."""
        site, _, target = self._redirection()
        noise = self._noise() * self._random.choice((0.0, 1e-4, 1e-2, 0.1, 0.5, 1.0))
        sign = self._random.choice((-1.0, -1.0, 1.0))
        return [self._on_vector(site, sign * target / target.norm() + noise)]

    def _sum_to_target(self) -> list[RequestEdit]:
        """Vectors that are far from a target, and what is read for it, and add up to both."""
        site, read, target = self._redirection()
        vector = read / read.norm() - target / target.norm()
        apart, size = 3.0 * self._noise(), self._random.choice((1.0, 5.0, 40.0, 1e4))
        return [
            self._on_vector(site, vector + apart, Op.ADD, size),
            self._on_vector(site, vector - apart, Op.ADD, size),
        ]

    def _along_sources(self) -> list[RequestEdit]:
        """Near what a redirect reads, so that it would see nothing."""
        site, read, _ = self._redirection()
        noise = self._noise() * self._random.choice((0.01, 0.1, 0.5))
        value = -self._random.choice((1.0, 5.0, 80.0, 1e4))
        return [self._on_vector(site, read / read.norm() + noise, Op.ADD, value)]

    def _ban_target(self) -> list[RequestEdit]:
        site, _, target = self._redirection()
        noise = self._noise() * self._random.choice((0.0, 1e-3, 0.1, 0.3, 1.0, 2.0))
        return [self._on_vector(site, target / target.norm() + noise, Op.BAN)]

    def _redirect_again(self) -> list[RequestEdit]:
        """What the operator redirects, by another row, to the opposite."""
        held = self._random.choice(self._redirecting)
        each = self._random.choice(held.redirected)
        sae = self._catalog.sae(held.sae, "sae")
        feature = self._catalog.by_index(sae, self._random.choice(each.features), "index")
        to = Probe.direction(-each.target(sae.sae).write + self._random.choice((0.0, 0.3)) * self._noise())
        value = self._random.choice((1.0, 5.0, 80.0))
        return [self._edit(held.site, feature.probe(), feature, Op.REDIRECT, value, to)]

    def _anything(self) -> list[RequestEdit]:
        found = []
        for _ in range(self._random.randint(1, 4)):
            if self._random.random() < 0.5:
                entry = self._random.choice(self._catalog.entries)
                found.append(self._on_feature(entry.id, self._random.randrange(entry.sae.features)))
            else:
                found.append(self._on_vector(self._random.choice(self._sites), self._noise()))
        return self._distinct(found)

    # -- its parts ------------------------------------------------------------------------------------

    def _redirection(self) -> tuple[Site, Tensor, Tensor]:
        """A site, what a redirect reads there (or all that go to one target, in sum) and what it writes."""
        held = self._random.choice(self._redirecting)
        sae, each = self._catalog.sae(held.sae, "sae").sae, self._random.choice(held.redirected)
        reads = [sae.probe(index).read for index in each.features]
        read = self._random.choice([*reads, torch.stack(reads).sum(0)])
        return held.site, read, each.target(sae).write

    def _held_probe(self, held: Held) -> Probe:
        return self._catalog.sae(held.sae, "sae").sae.probe(self._random.choice(held.features))

    def _noise(self) -> Tensor:
        width = self._catalog.entries[0].sae.W_dec.shape[1]
        vector: Tensor = torch.randn(width, generator=self._torch)
        unit: Tensor = vector / vector.norm()
        return unit

    def _on_feature(self, sae: str, index: int) -> RequestEdit:
        loaded = self._catalog.sae(sae, "sae")
        feature = self._catalog.by_index(loaded, index, "index")
        return self._edit(loaded.site, feature.probe(), feature)

    def _on_vector(
        self, site: Site, vector: Tensor, op: Op | None = None, value: float | None = None
    ) -> RequestEdit:
        return self._edit(site, Probe.direction(vector), None, op, value)

    def _edit(
        self,
        site: Site,
        probe: Probe,
        feature: FoundFeature | None,
        op: Op | None = None,
        value: float | None = None,
        to: Probe | None = None,
    ) -> RequestEdit:
        op = op or self._random.choice([each for each in Op if each is not Op.WATCH])
        phase = self._random.choice((Phase.ALL, Phase.ALL, Phase.PROMPT, Phase.COMPLETION))
        if op in (Op.BAN, Op.ABLATE):
            told = 0.0 if op is Op.BAN else None
            return RequestEdit(_PATH, site, op, op.row(probe, 0.0, phase), feature, told)
        value = self._random.choice(_VALUES) if value is None else value
        if op.redirects:
            given = Redirection(to or Probe.direction(self._noise()), self._random.choice((0.0, 1.0)))
            row = op.row(probe, value, phase, to=given)
            return RequestEdit(_PATH, site, op, row, feature, value, Unit.FEATURE, given)
        relative = bool(op.units) and abs(value) <= 80.0 and self._random.random() < 0.3
        unit = Unit.NORM_FRACTION if relative else Unit.FEATURE
        return RequestEdit(_PATH, site, op, op.row(probe, value, phase, relative), feature, value, unit)

    @staticmethod
    def _distinct(found: list[RequestEdit]) -> list[RequestEdit]:
        """Without a second edit of the same probe, which the server refuses as a contradiction."""
        return list({(each.site, each.edit.probe.key): each for each in found}.values())
