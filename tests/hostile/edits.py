"""A hostile client's requests, random and crafted, and a witness of what is awake behind every ban."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.requests import SamplingParams
from saegis_server.engine.sites import Site, site_module
from saegis_server.engine.step import Step
from saegis_server.policy.decision import RequestEdit
from saegis_server.policy.operations import WITH_UNIT, row_of
from saegis_server.policy.schema import Op, Unit
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.catalog import Catalog, FoundFeature
from saegis_server.steering.bounds import NO_LIMIT
from saegis_server.steering.rows import Phase, Probe

#: Stands for an edit's field until its place in the request is known.
_PATH = ""
_VALUES = (0.0, 0.1, -0.1, 1.0, -1.0, 5.0, -5.0, 80.0, -80.0, 1e4, -1e4, 1e6, -1e6)


@dataclass(frozen=True)
class Banned:
    """The banned features of one SAE."""

    site: str
    sae: str
    features: tuple[int, ...]


@dataclass(frozen=True)
class Try:
    """One request of the hostile client."""

    tenant: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    edits: tuple[RequestEdit, ...]


class Client:
    """Makes requests that try to bring back what is banned, the same ones for the same seed."""

    def __init__(
        self, catalog: Catalog, sites: tuple[str, ...], banned: tuple[Banned, ...], seed: int
    ) -> None:
        self._catalog, self._sites, self._banned = catalog, sites, banned
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._crafts = (
            self._clamp_banned,
            self._clamp_neighbours,
            self._along_banned,
            self._nearly_along_banned,
            self._sum_to_banned,
            self._later_site,
            self._many_small,
            self._anything,
        )

    def tries(self, count: int) -> Iterator[Try]:
        """So many requests."""
        pick = self._random
        for _ in range(count):
            edits = tuple(pick.choice(self._crafts)()) if pick.random() < 0.95 else ()
            length = pick.choice((1, 2, 3, 3, 4, 5, 8, 40))
            sampling = SamplingParams(
                temperature=pick.choice((0.0, 0.0, 1.0)),
                seed=pick.randrange(100),
                max_tokens=pick.choice((1, 1, 2, 2, 4)),
                n=pick.choice((1, 1, 1, 1, 2)),
                ignore_eos=True,
            )
            prompt = tuple(pick.randrange(256) for _ in range(length))
            named = tuple(replace(edit, path=f"steering.edits[{index}]") for index, edit in enumerate(edits))
            yield Try(pick.choice(("lab", "lab", "public")), prompt, sampling, named)

    # -- what it tries --------------------------------------------------------------------------------

    def _clamp_banned(self) -> list[RequestEdit]:
        banned = self._random.choice(self._banned)
        return [self._on_feature(banned.sae, self._random.choice(banned.features))]

    def _clamp_neighbours(self) -> list[RequestEdit]:
        """The features whose decoder rows lie closest to a banned feature's encoder row."""
        banned = self._random.choice(self._banned)
        sae = self._catalog.sae(banned.sae, "sae").sae
        read = sae.probe(self._random.choice(banned.features)).read
        near = (sae.W_dec @ read).topk(10).indices.tolist()
        chosen = [index for index in near if index not in banned.features]
        count = self._random.randint(1, 4)
        return self._distinct([self._on_feature(banned.sae, index) for index in chosen[:count]])

    def _along_banned(self) -> list[RequestEdit]:
        banned = self._random.choice(self._banned)
        probe = self._banned_probe(banned)
        vector = self._random.choice((probe.read, probe.write)) * self._random.choice((1.0, -1.0))
        return [self._on_vector(banned.site, vector)]

    def _nearly_along_banned(self) -> list[RequestEdit]:
        banned = self._random.choice(self._banned)
        vector = self._banned_probe(banned).read
        noise = self._noise() * float(vector.norm()) * self._random.choice((1e-4, 1e-2, 0.1, 0.5))
        return [self._on_vector(banned.site, vector + noise)]

    def _sum_to_banned(self) -> list[RequestEdit]:
        """Vectors that are far from a banned one, each by itself, and add up to it."""
        banned = self._random.choice(self._banned)
        vector = self._banned_probe(banned).read
        unit = vector / vector.norm()
        apart = 3.0 * self._noise()
        return [
            self._on_vector(banned.site, unit + apart, Op.ADD, 40.0),
            self._on_vector(banned.site, unit - apart, Op.ADD, 40.0),
        ]

    def _later_site(self) -> list[RequestEdit]:
        banned = self._random.choice(self._banned)
        later = [site for site in self._sites if self._sites.index(site) > self._sites.index(banned.site)]
        site = self._random.choice(later or list(self._sites))
        return [self._on_vector(site, self._banned_probe(banned).write)]

    def _many_small(self) -> list[RequestEdit]:
        banned = self._random.choice(self._banned)
        vector = self._banned_probe(banned).read
        return [
            self._on_vector(banned.site, vector + (0.05 * index + 0.01) * self._noise(), Op.ADD, 0.5)
            for index in range(8)
        ]

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

    def _banned_probe(self, banned: Banned) -> Probe:
        return self._catalog.sae(banned.sae, "sae").sae.probe(self._random.choice(banned.features))

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
        self, site: str, vector: Tensor, op: Op | None = None, value: float | None = None
    ) -> RequestEdit:
        return self._edit(site, Probe.direction(vector), None, op, value)

    def _edit(
        self,
        site: str,
        probe: Probe,
        feature: FoundFeature | None,
        op: Op | None = None,
        value: float | None = None,
    ) -> RequestEdit:
        op = op or self._random.choice([each for each in Op if each is not Op.WATCH])
        phase = self._random.choice((Phase.ALL, Phase.ALL, Phase.PROMPT, Phase.COMPLETION))
        if op in (Op.BAN, Op.ABLATE):
            told = 0.0 if op is Op.BAN else None
            return RequestEdit(_PATH, site, op, row_of(op, probe, 0.0, phase), feature, told)
        value = self._random.choice(_VALUES) if value is None else value
        relative = op in WITH_UNIT and abs(value) <= 80.0 and self._random.random() < 0.3
        unit = Unit.NORM_FRACTION if relative else Unit.FEATURE
        return RequestEdit(_PATH, site, op, row_of(op, probe, value, phase, relative), feature, value, unit)

    @staticmethod
    def _distinct(found: list[RequestEdit]) -> list[RequestEdit]:
        """Without a second edit of the same probe, which the server refuses as a contradiction."""
        return list({(each.site, each.edit.probe.key): each for each in found}.values())


class Witness:
    """Sees the activations behind every banned site, after all edits, and encodes them in float64."""

    def __init__(
        self, model: PreTrainedModel, step: Step, catalog: Catalog, banned: tuple[Banned, ...]
    ) -> None:
        """Hook `model`, on whose sites `step` has its own hooks already, so that these come after."""
        self.tokens = 0
        self.awake: list[str] = []
        self._step = step
        for each in banned:
            module, _ = site_module(model, Site.parse(each.site))
            sae = catalog.sae(each.sae, "sae").sae
            module.register_forward_hook(self._hook(each, sae))

    def _hook(self, banned: Banned, sae: SparseAutoencoder) -> Callable[[object, object, Any], None]:
        features = list(banned.features)
        assert sae.b_enc is not None
        assert sae.threshold is not None
        w_enc, b_enc = sae.W_enc[:, features].double(), sae.b_enc[features].double()
        b_dec, threshold = sae.b_dec.double(), sae.threshold[features].double()

        def look(module: object, args: object, output: Any) -> None:
            if self._step.context.prompt is None:
                return
            x = output[0] if isinstance(output, tuple) else output
            slots = self._slots(x)
            ranges = self._step.slots.tables[Site.parse(banned.site)].bounds.ranges[slots]
            held = (ranges[:, 1] < NO_LIMIT).any(-1)
            x = x[held].double()
            x = x[torch.isfinite(x).all(-1)]
            self.tokens += len(x)
            active = ((x - b_dec) @ w_enc + b_enc > threshold).any(0)
            for place in active.nonzero().flatten().tolist():
                self.awake.append(f"feature {features[place]} at {banned.site}")

        return look

    def _slots(self, x: Tensor) -> Tensor:
        slot = self._step.context.slot
        return torch.arange(x.shape[0]) if slot is None else slot
