"""Site reading: a model's activations at its sites, read and edited by hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from saegis_server.engine.sites import all_sites, decoder_layers, site_module
from saegis_server.steering.site import Place, Site, SiteError

#: Replaces the activation x [rows, tokens, d] of a site, in its dtype.
Edit = Callable[[Tensor], Tensor]


def hook(model: PreTrainedModel, site: Site, edit: Edit) -> tuple[RemovableHandle, ...]:
    """From now on the activation x [rows, tokens, d] of `site` is replaced by `edit(x)`.

    An edit of resid_mid moves what the MLP's norm reads and, by as much, the stream to which the MLP adds.
    Raises SiteError if the model has no such site.
    """
    module, reads_input = site_module(model, site)
    if site.place is Place.RESID_MID:
        between = _Between(edit)
        layer = decoder_layers(model)[site.layer]
        return _before(module, between.read), _after(layer, between.carry)
    return ((_before if reads_input else _after)(module, edit),)


def _before(module: nn.Module, edit: Edit) -> RemovableHandle:
    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _after(module: nn.Module, edit: Edit) -> RemovableHandle:
    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return module.register_forward_hook(after)


class _Between:
    """The stream between attention and the MLP, which a layer also keeps for its output: that moves as it
    does."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._moved: tuple[Tensor, Tensor] | None = None

    def read(self, x: Tensor) -> Tensor:
        changed = self._edit(x)
        self._moved = None if changed is x else (x, changed)
        return changed

    def carry(self, output: Tensor) -> Tensor:
        if self._moved is None:
            return output
        (before, after), self._moved = self._moved, None
        # In float32: where nothing moved, the output keeps its bits.
        return (output.float() + (after.float() - before.float())).to(output.dtype)


@contextmanager
def edited(model: PreTrainedModel, site: Site, edit: Edit) -> Iterator[None]:
    """While open, the activation of `site` is replaced as by `hook`, which raises as it does."""
    handles = hook(model, site, edit)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Done(Exception):
    """Raised to leave the forward pass once the site has been read."""


@torch.no_grad()
def read_site(
    model: PreTrainedModel,
    site: Site,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    seen: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """Activations where `site` is read, float32 [rows, tokens, d], on the model's device; what comes after it
    is not run.

    input_ids and attention_mask: int64 [rows, tokens]. Under causal attention right padding needs no mask.
    seen: what a model's vision tower is given of the pictures of a single row.
    """
    caught: list[Tensor] = []

    def stop(x: Tensor) -> Tensor:
        caught.append(x.detach().float())
        raise _Done

    with edited(model, site.read_at, stop):
        try:
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **seen)
        except _Done:
            return caught[0]
    raise RuntimeError(f"{site}: the model's forward pass does not run through it")


@torch.no_grad()
def show_sites(
    model: PreTrainedModel, run: Callable[[], object], visit: Callable[[Site, Tensor], None]
) -> None:
    """Show `visit` the activation x [rows, tokens, d] of every site that `model` has, while `run` runs it."""

    def show(site: Site, x: Tensor) -> Tensor:
        visit(site, x)
        return x

    with ExitStack() as opened:
        for site in all_sites(model):
            with suppress(SiteError):  # A family may lack a place, as those without an MLP of that name.
                opened.enter_context(edited(model, site, partial(show, site)))
        run()
