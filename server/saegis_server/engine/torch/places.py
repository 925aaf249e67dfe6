"""Places: that what is called a place of a layer is one, checked on a model's own numbers before it is used.

The stream before a layer, what attention adds and what the MLP adds must make up the stream after it. Where a
model scales what it adds (Granite), or adds anything else, an edit there would not do what the algebra says.
What lies between attention and the MLP must be the layer's input where attention adds nothing, and its output
where the MLP adds nothing.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.engine.sites import attention_of, decoder_layers, projection_of, site_width
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering.site import Place, Site, SiteError, forward_order

#: How far the sum may lie from the stream after the layer, relative to what is added.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
_TEXT = (3, 1, 4, 1, 5, 9, 2, 6)
#: What is added up, and then the sum.
_SUM = (Place.RESID_PRE, Place.ATTN_OUT, Place.MLP_OUT, Place.RESID_POST)


@torch.inference_mode()
def check_places(model: PreTrainedModel, sites: Iterable[Site]) -> None:
    """Raise SiteError for a site that the model does not have, or that is not what its name says."""
    if not (wanted := sorted({each for site in sites for each in (site.read_at, site.written_at)}, key=str)):
        return
    last = len(decoder_layers(model)) - 1
    whole = {Site(site.layer, place) for site in wanted if _is_part(site) for place in _SUM}
    streams = {_next(site) for site in wanted if site.place is Place.RESID_POST and site.layer < last}
    found = _activations(model, {*wanted, *whole, *streams})
    for site in wanted:
        width = site_width(model, site)
        shape = tuple(found[site].shape) if site in found else ()
        if shape != (1, len(_TEXT), width):
            raise SiteError(f"{site} cannot be steered: it is {list(shape)} there, and not {width} wide")
        if _is_part(site):
            _check_sum(model, site, found)
            continue
        if site.place is Place.RESID_MID:
            _check_between(model, site)
        if site.place is Place.ATTN_Z:
            _check_projected(model, site)
        read_next = site.place is Place.RESID_POST and site.layer < last
        if read_next and not torch.equal(found[site], found[_next(site)]):
            raise SiteError(f"{site} cannot be steered: it is not what the next layer reads")


def _activations(model: PreTrainedModel, sites: set[Site], nothing: Site | None = None) -> dict[Site, Tensor]:
    """The activations [1, T, d] of a text at the sites that its forward pass comes by; at the site `nothing`
    they are zero."""
    found: dict[Site, Tensor] = {}

    def keep(site: Site, x: Tensor) -> Tensor:
        found[site] = x = torch.zeros_like(x) if site == nothing else x
        return x

    with ExitStack() as opened:
        for site in sorted(sites if nothing is None else {*sites, nothing}, key=forward_order):
            opened.enter_context(edited(model, site, partial(keep, site)))
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.tensor([[token % vocabulary for token in _TEXT]], device=model.device)
        model(input_ids=ids, use_cache=False)
    return found


def _check_between(model: PreTrainedModel, site: Site) -> None:
    for silent, end, side in (
        (Place.ATTN_OUT, Place.RESID_PRE, "before"),
        (Place.MLP_OUT, Place.RESID_POST, "after"),
    ):
        other = Site(site.layer, end)
        found = _activations(model, {site, other}, Site(site.layer, silent))
        if not torch.equal(found[site], found[other]):
            raise SiteError(
                f"{site} cannot be steered: where {silent} is nothing, it is not the stream {side} the layer"
            )


def _check_projected(model: PreTrainedModel, site: Site) -> None:
    """Attention must give nothing but the projection of its heads' outputs."""
    layer, given = decoder_layers(model)[site.layer], []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        given.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as opened:
        for module in (projection_of(layer, site), attention_of(layer, site)):
            opened.callback(module.register_forward_hook(keep).remove)
        _activations(model, {site})
    if not torch.equal(*given):
        raise SiteError(f"{site} cannot be steered: what its projection gives is not what attention gives")


def _is_part(site: Site) -> bool:
    return site.place in (Place.ATTN_OUT, Place.MLP_OUT)


def _next(site: Site) -> Site:
    return Site(site.layer + 1, Place.RESID_PRE)


def _check_sum(model: PreTrainedModel, site: Site, found: dict[Site, Tensor]) -> None:
    before, attention, mlp, after = (found[Site(site.layer, place)].double() for place in _SUM)
    off = float((before + attention + mlp - after).norm() / (after - before).norm())
    if not off <= _TOLERANCE[model.dtype]:
        raise SiteError(
            f"{site} cannot be steered: what is before the layer, attention and the MLP do not make up what "
            f"is after it (off by {100 * off:.3g} % of what the layer adds)"
        )
