"""Hooks: where the model's forward pass hands its activations to the steering core."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.engine.sites import Site, site_module
from saegis_server.engine.torch.context import Mode, StepContext
from saegis_server.steering.apply import Readings, apply
from saegis_server.steering.rows import Norm


def install_hooks(model: PreTrainedModel, sites: dict[Site, frozenset[Norm]], context: StepContext) -> None:
    """Let every site's activation pass through `context`; `sites` gives the normalisations used at each."""
    for site, norms in sites.items():
        module, reads_input = site_module(model, site)
        hook = _SiteHook(site, norms, context)
        if reads_input:
            module.register_forward_pre_hook(hook.on_input, with_kwargs=True)
        else:
            module.register_forward_hook(hook.on_output)


class _SiteHook:
    def __init__(self, site: Site, norms: frozenset[Norm], context: StepContext) -> None:
        self.site, self.norms, self.context = site, norms, context

    def _pass(self, x: Tensor) -> Tensor:
        context = self.context
        if context.mode is Mode.CAPTURE:
            context.captured[self.site] = x
        if context.prompt is not None:
            steered, readings = apply(x, context.views[self.site], context.prompt, self.norms)
            if context.unmoved is not None:
                steered, readings = _except_for(context.unmoved, x, steered, readings)
            x, context.readings[self.site] = steered, readings
        return x

    def on_input(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._pass(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._pass(kwargs["hidden_states"])}

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._pass(output[0]), *output[1:])
        return self._pass(output)


def _except_for(unmoved: Tensor, x: Tensor, steered: Tensor, readings: Readings) -> tuple[Tensor, Readings]:
    """What a site gives if the tokens `unmoved` [B, Q] stay what they are, and nothing is counted there."""
    kept = unmoved[:, :, None]
    return torch.where(kept, x, steered), readings._replace(
        watched_after=torch.where(kept, readings.watched_before, readings.watched_after),
        edited=readings.edited & ~unmoved,
        bans_fired=torch.where(unmoved, 0.0, readings.bans_fired),
        relative_norm=torch.where(unmoved, 0.0, readings.relative_norm),
    )
