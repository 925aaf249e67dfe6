"""Site reading: a model's activations at its sites, read and edited by hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from saegis_server.engine.sites import all_sites, site_module
from saegis_server.steering.site import Site, SiteError

#: Replaces the activation x [rows, tokens, d] of a site, in its dtype.
Edit = Callable[[Tensor], Tensor]


def hook(model: PreTrainedModel, site: Site, edit: Edit) -> RemovableHandle:
    """From now on the activation x [rows, tokens, d] of `site` is replaced by `edit(x)`.

    Raises SiteError if the model has no such site.
    """
    module, reads_input = site_module(model, site)

    def before(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    if reads_input:
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


@contextmanager
def edited(model: PreTrainedModel, site: Site, edit: Edit) -> Iterator[None]:
    """While open, the activation of `site` is replaced as by `hook`, which raises as it does."""
    handle = hook(model, site, edit)
    try:
        yield
    finally:
        handle.remove()


class _Done(Exception):
    """Raised to leave the forward pass once the site has been read."""


@torch.no_grad()
def read_site(
    model: PreTrainedModel, site: Site, input_ids: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """Activations at `site`, float32 [rows, tokens, d], on the model's device; later layers are not run.

    input_ids and attention_mask: int64 [rows, tokens]. Under causal attention right padding needs no mask.
    """
    caught: list[Tensor] = []

    def stop(x: Tensor) -> Tensor:
        caught.append(x.detach().float())
        raise _Done

    with edited(model, site, stop):
        try:
            model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
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
