"""Places: where the sites are in vLLM's layers, whose code is Transformers' with the residual apart.

A layer of most families takes and gives two tensors, what its last module added and the stream before that;
the stream is their sum. So a site in the stream reads the sum and, where a text may be moved, writes it
whole: what was added is then 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from saegis_server.engine.sites import module_in
from saegis_server.engine.vllm.steered import Steered
from saegis_server.steering.site import Place, Site, SiteError

#: Replaces the activations [N, d] of a site.
Edit = Callable[[Tensor], Tensor]
#: The stream's two parts [N, d] each, from those before; the second is None where it is not apart.
PairEdit = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class SiteEdit(Protocol):
    """A site as the code of a layer sees it."""

    def one(self, x: Tensor) -> Tensor:
        """A place that has a tensor of its own, [N, d]."""

    def pair(self, added: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A place in the stream, whose parts are [N, d] each; the second is None where it is not apart."""


def layers_of(model: nn.Module, count: int) -> nn.ModuleList:
    """The list of `count` decoder layers of a model of vLLM's. Raises SiteError where it is not clear."""
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and count > 0
    ]
    # What a layer is made of may be as many, such as experts: the outermost list is that of the layers.
    inner = {id(each) for found in lists for layer in found for each in layer.modules()}
    outer = [found for found in lists if id(found) not in inner]
    if len(outer) != 1:
        raise SiteError(f"{type(model).__name__} has {len(outer)} lists of {count} decoder layers, not one")
    return outer[0]


def steer_model(model: nn.Module, layers: int, sites: Iterable[tuple[Site, SiteEdit]]) -> None:
    """Let the activations of each site pass through what is given for it. Raises SiteError for a site that
    vLLM's code of the model does not have, or in a form that was not tried."""
    found = layers_of(model, layers)
    for site, at in sites:
        _steer(found[site.layer], site, at)


def sites_of(steered: Steered) -> list[tuple[Site, SiteEdit]]:
    """The sites of `steered`, through which their activations pass."""
    return [(site, SteeredSite(steered, number)) for number, site in enumerate(steered.sites)]


def check_places(sites: Iterable[Site], ranks: int = 1) -> None:
    """Raise SiteError for sites at which this engine does not steer, with so many ranks to each layer."""
    for site in sites:
        if site.written_at != site:
            raise SiteError(
                f"{site}: the vLLM engine does not serve what is read at one place and written at another; "
                "the embedded engine does"
            )
        if ranks > 1 and site.place is Place.ATTN_Z:
            raise SiteError(f"{site}: with tensor_parallel_size {ranks} no rank has all heads' outputs")


class SteeredSite:
    """A site of a worker; see `SiteEdit`."""

    def __init__(self, steered: Steered, number: int) -> None:
        self._steered, self._number = steered, number

    def one(self, x: Tensor) -> Tensor:
        """A place that has a tensor of its own; [1, N, d] where vLLM calls Transformers' code."""
        if x.dim() == 2:
            return self._steered.steer(self._number, x)
        return self._steered.steer(self._number, x.flatten(0, -2)).view(x.shape)

    def pair(self, added: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A place in the stream. Texts that nothing may move keep both parts as they are."""
        if stream is None:
            return self.one(added), None
        if self._steered.passes(self._number):
            return added, stream
        x = (added.float() + stream.float()).to(added.dtype)
        after = self.one(x)
        writes = self._steered.writes
        if writes is None or after is x:
            return added, stream
        if len(writes) < len(x):
            writes = torch.cat((writes, writes.new_zeros(len(x) - len(writes))))
        chosen = writes[:, None]
        return torch.where(chosen, 0.0, added), torch.where(chosen, after, stream)


def _steer(layer: nn.Module, site: Site, at: SiteEdit) -> None:
    if site.place is Place.RESID_POST:
        return _after_layer(layer, at.pair)
    if site.place is Place.RESID_PRE:
        return _before_stream(layer, site, at.pair)
    module, reads_input = module_in(layer, site)
    if site.place is Place.RESID_MID:
        if "residual" not in _parameters(module):
            raise SiteError(
                f"{site}: in vLLM's {type(layer).__name__} no norm takes the stream apart, and without that "
                "this place was not tried"
            )
        return _before_stream(module, site, at.pair)
    return _before(module, at.one) if reads_input else _after(module, at.one)


def _parameters(module: nn.Module) -> list[str]:
    """The names of what a module's forward takes; where vLLM chooses one for the machine, of that in plain
    torch, which takes the same."""
    return list(inspect.signature(getattr(module, "forward_native", module.forward)).parameters)


def _after_layer(layer: nn.Module, edit: PairEdit) -> None:
    """The output of a layer: a tensor, or what was added beside the stream."""
    inner = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        if isinstance(output, tuple):
            return (*edit(output[0], output[1]), *output[2:])
        return edit(output, None)[0]

    layer.forward = forward


def _before_stream(module: nn.Module, site: Site, edit: PairEdit) -> None:
    """The input of a layer or of a norm: a tensor, or what was added beside the stream."""
    inner, names = module.forward, _parameters(module)
    first = next((names.index(name) for name in ("hidden_states", "x") if name in names), None)
    if first is None:
        raise SiteError(f"{site}: vLLM's {type(module).__name__} does not name what it reads")
    second = names.index("residual") if "residual" in names else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        given: list[Any] = [args[at] if at < len(args) else kwargs.get(name) for at, name in enumerate(names)]
        added, stream = edit(given[first], None if second is None else given[second])
        passed = list(args)
        for at, value in ((first, added), (second, stream)):
            if at is None:
                continue
            if at < len(args):
                passed[at] = value
            elif names[at] in kwargs:
                kwargs[names[at]] = value
        return inner(*passed, **kwargs)

    module.forward = forward


def _before(module: nn.Module, edit: Edit) -> None:
    """The input of a module that takes one tensor."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args:
            return inner(edit(args[0]), *args[1:], **kwargs)
        (name, value), *others = kwargs.items()
        return inner(**{name: edit(value), **dict(others)})

    module.forward = forward


def _after(module: nn.Module, edit: Edit) -> None:
    """The output of a module: a tensor, or the first of several."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    module.forward = forward
