"""Hooks: where the model's forward pass hands its activations to the steering core."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis_server.engine.torch.context import Mode, StepContext
from saegis_server.engine.torch.site_reading import hook
from saegis_server.steering.apart import Waiting, read_apart, write_apart
from saegis_server.steering.apply import Readings, apply
from saegis_server.steering.ranking import Ranking
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site


def install_hooks(
    model: PreTrainedModel,
    sites: dict[Site, frozenset[Norm]],
    context: StepContext,
    rankings: Mapping[Site, Ranking],
) -> None:
    """Let every site's activation pass through `context`; `sites` gives the normalisations used at each,
    `rankings` the SAEs that decide by rank."""
    for number, (site, norms) in enumerate(sites.items()):
        if site.written_at == site:
            hook(model, site, _SiteHook(number, site, norms, context, rankings[site])._pass)
            continue
        apart = _ApartHook(number, site, norms, context, rankings[site])
        hook(model, site.read_at, apart._read)
        hook(model, site.written_at, apart._write)


class _SiteHook:
    def __init__(
        self, number: int, site: Site, norms: frozenset[Norm], context: StepContext, ranking: Ranking
    ) -> None:
        self.number, self.site, self.norms, self.context = number, site, norms, context
        self.cuts = ranking.cuts if ranking else None

    def _pass(self, x: Tensor) -> Tensor:
        context = self.context
        self._keep(x)
        if context.tokens is None:
            return x
        flat, gates = x.flatten(0, 1), None if context.conditions is None else self._gates
        steered, readings = apply(
            flat, context.views[self.site], context.tokens, self.norms, gates, self.cuts
        )
        return self._told(x, steered, readings)

    def _keep(self, x: Tensor) -> None:
        """Keep the activations x [rows, tokens, d] for whoever asks for them as they are."""
        context = self.context
        if context.mode is Mode.CAPTURE:
            context.captured[self.site] = x
        if context.tokens is not None and self.site in context.keeps:
            context.kept[self.site] = x.flatten(0, 1)

    def _told(self, x: Tensor, steered: Tensor, readings: Readings) -> Tensor:
        """What goes on of x [rows, tokens, d], of which the tokens were steered so; the readings are told."""
        context = self.context
        if context.unmoved is not None:
            steered, readings = except_for(context.unmoved, x.flatten(0, 1), steered, readings)
        context.readings[self.site] = readings
        return steered.reshape(x.shape)

    def _gates(self, guarded: Tensor) -> Tensor:
        conditions = self.context.conditions
        if conditions is None:
            raise RuntimeError("no step with conditions is running")
        return conditions.read(self.number, guarded)


class _ApartHook(_SiteHook):
    """Of a site that is written elsewhere than it is read: what is to be written waits until then."""

    def __init__(
        self, number: int, site: Site, norms: frozenset[Norm], context: StepContext, ranking: Ranking
    ) -> None:
        super().__init__(number, site, norms, context, ranking)
        self._waiting: Waiting | None = None

    def _read(self, x: Tensor) -> Tensor:
        context = self.context
        self._keep(x)
        if context.tokens is None:
            return x
        flat, gates = x.flatten(0, 1), None if context.conditions is None else self._gates
        self._waiting = read_apart(
            flat, context.views[self.site], context.tokens, self.norms, gates, self.cuts
        )
        return x

    def _write(self, x: Tensor) -> Tensor:
        context, waiting = self.context, self._waiting
        if context.tokens is None or waiting is None:
            return x
        self._waiting = None
        return self._told(x, *write_apart(x.flatten(0, 1), waiting))


def except_for(unmoved: Tensor, x: Tensor, steered: Tensor, readings: Readings) -> tuple[Tensor, Readings]:
    """What a site gives if the tokens `unmoved` [T] stay what they are, and nothing is counted there."""
    kept = unmoved[:, None]
    return torch.where(kept, x, steered), readings._replace(
        watched_after=torch.where(kept, readings.watched_before, readings.watched_after),
        edited=readings.edited & ~unmoved,
        bans_fired=torch.where(unmoved, 0.0, readings.bans_fired),
        relative_norm=torch.where(unmoved, 0.0, readings.relative_norm),
        acted=readings.acted & ~kept,
    )
