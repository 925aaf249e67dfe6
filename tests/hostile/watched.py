"""Engines that a witness watches: what lies before and behind their sites, and which token is whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.engine.sites import module_in, site_module
from saegis_server.engine.torch.step import Step
from saegis_server.engine.vllm.places import layers_of
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Site
from saegis_server.steering.table import SiteTable

#: Gets the activations [T, d] of a site.
Look = Callable[[Tensor], None]


class Seen(NamedTuple):
    """The tokens of a step, int64 [T] each: in which slots they are, where in their texts, and which."""

    slots: Tensor
    positions: Tensor
    ids: Tensor


class Watched(Protocol):
    """An engine whose sites are watched from outside, with the rows of its slots."""

    def tokens(self) -> Seen | None:
        """The tokens of the step that runs; None where nothing is steered."""

    def table(self, site: Site) -> SiteTable:
        """The rows of all slots at a site."""

    def before(self, site: Site, look: Look) -> None:
        """Have what comes into a site looked at, a step after the other."""

    def behind(self, site: Site, look: Look) -> None:
        """The same of what goes on behind it, after all edits."""


class _Ids:
    """The tokens that a model has read last."""

    def __init__(self, embedding: nn.Module) -> None:
        self._read: Tensor | None = None
        embedding.register_forward_pre_hook(self._see)

    def _see(self, module: object, args: tuple[Tensor, ...]) -> None:
        self._read = args[0]

    def first(self, count: int) -> Tensor:
        """So many of them."""
        assert self._read is not None
        return self._read.flatten()[:count]


class InTorch:
    """The embedded engine, on whose sites `step` has its own hooks already, so that these come after."""

    def __init__(self, step: Step) -> None:
        self._step = step
        embedding: Any = step.model.get_input_embeddings()
        self._ids = _Ids(embedding)

    def tokens(self) -> Seen | None:
        """See `Watched`."""
        context = self._step.context
        if context.tokens is None:
            return None
        assert context.positions is not None
        batch, read = context.positions.shape
        slots = torch.arange(batch) if context.slot is None else context.slot
        positions = context.positions.flatten()
        return Seen(slots.repeat_interleave(read), positions, self._ids.first(batch * read))

    def table(self, site: Site) -> SiteTable:
        """See `Watched`."""
        return self._step.slots.tables[site]

    def before(self, site: Site, look: Look) -> None:
        """See `Watched`."""
        site_module(self._step.model, site)[0].register_forward_hook(_seeing(look), prepend=True)

    def behind(self, site: Site, look: Look) -> None:
        """See `Watched`."""
        site_module(self._step.model, site)[0].register_forward_hook(_seeing(look))


def _seeing(look: Look) -> Callable[[object, object, Any], None]:
    """A hook for a module of Transformers' that gives [B, Q, d], or that and more."""

    def see(module: object, args: object, output: Any) -> None:
        look((output[0] if isinstance(output, tuple) else output).flatten(0, 1))

    return see


class InVllm:
    """The engine on vLLM, in vLLM itself or with the plain core in its place."""

    def __init__(self, steered: Steered, model: nn.Module, layers: int | None = None) -> None:
        """layers: how many a model of vLLM's has; None for one of Transformers'."""
        self._steered, self._model = steered, model
        self._layers = None if layers is None else layers_of(model, layers)
        inner: Any = model
        self._ids = _Ids(inner.get_input_embeddings() if layers is None else inner.model.embed_tokens)
        self._before: dict[int, list[Look]] = {}
        self._steer, steered.steer = steered.steer, self._pass  # type: ignore[method-assign]

    def _pass(self, number: int, x: Tensor) -> Tensor:
        """What the site `number` makes of its activations, once they have been looked at."""
        if (seen := self.tokens()) is not None:
            for look in self._before.get(number, ()):
                look(x[: len(seen.slots)])
        return self._steer(number, x)

    def tokens(self) -> Seen | None:
        """See `Watched`."""
        step = self._steered._step
        if step is None:
            return None
        return Seen(step.flat.slot, step.flat.position, self._ids.first(step.flat.count))

    def table(self, site: Site) -> SiteTable:
        """See `Watched`."""
        return self._steered.tables[self._steered.sites.index(site)]

    def before(self, site: Site, look: Look) -> None:
        """See `Watched`. What comes in is what the site is handed."""
        self._before.setdefault(self._steered.sites.index(site), []).append(look)

    def behind(self, site: Site, look: Look) -> None:
        """See `Watched`. Of a stream that is in two parts it is the sum."""

        def see(module: object, args: object, output: Any) -> None:
            if (seen := self.tokens()) is None:
                return
            first, *rest = output if isinstance(output, tuple) else (output,)
            x = first if self._layers is None or not rest else (first.float() + rest[0].float())
            look((x.flatten(0, 1) if x.dim() > 2 else x)[: len(seen.slots)])

        if self._layers is None:
            assert isinstance(self._model, PreTrainedModel)
            module = site_module(self._model, site)[0]
        else:
            module = module_in(self._layers[site.layer], site)[0]
        module.register_forward_hook(see)
