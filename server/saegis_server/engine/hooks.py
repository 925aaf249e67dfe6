"""Hooks: where the model's forward pass hands its activations to the steering core."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.engine.context import Mode, StepContext
from saegis_server.engine.sites import Site, site_module
from saegis_server.steering.apply import apply
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
            x, context.readings[self.site] = apply(x, context.views[self.site], context.prompt, self.norms)
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
