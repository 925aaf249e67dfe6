"""Where the sites are in a Transformers model: its decoder layers, and the module to hook for each."""

from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.steering.site import Place, Site, SiteError, Widths

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
#: What projects the heads' outputs, in an attention.
_PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj", "wo")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mixer_mlp")
#: The norms of what attention and the MLP add, of a layer that has both.
_NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
#: The norms before the MLP, which read the stream between attention and the MLP, the surest name first: where
#: there is a norm after attention, Llama's name of the norm before the MLP may be that one's.
_NORMS_BEFORE_MLP = ("pre_feedforward_layernorm", "ln_2", "feedforward_layernorm", "post_attention_layernorm")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal language model of any family. Raises SiteError if unclear."""
    count = model.config.get_text_config().num_hidden_layers
    find: Callable[[], nn.Module] = model.get_decoder
    lists = [
        module
        for module in find().modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _holds_layers(module)
    ]
    if len(lists) != 1:
        raise SiteError(f"{type(model).__name__} has {len(lists)} lists of {count} decoder layers, not one")
    return lists[0]


def _holds_layers(modules: nn.ModuleList) -> bool:
    return all(_named(module, *_ATTENTION) is not None for module in modules)


def _named(layer: nn.Module, *names: str) -> nn.Module | None:
    for name in names:
        if isinstance(child := getattr(layer, name, None), nn.Module):
            return child
    return None


def site_module(model: PreTrainedModel, site: Site) -> tuple[nn.Module, bool]:
    """The module to hook for a site, and whether its input (True) or its output (False) is the activation.

    In models that normalise what attention and the MLP add (Gemma 2 and 3, OLMo 2, GLM 4), the contribution
    after that norm is the site. The layer's output has resid_mid in it beside what the module that reads it
    gives: see `site_reading.hook`. Raises SiteError if the model has no such layer or module.
    """
    layers = decoder_layers(model)
    if not 0 <= site.layer < len(layers):
        raise SiteError(f"{site} does not exist: the model has layers 0 to {len(layers) - 1}")
    return module_in(layers[site.layer], site)


def module_in(layer: nn.Module, site: Site) -> tuple[nn.Module, bool]:
    """The same of the site's own layer, whose modules have the names that Transformers gives them."""
    if site.place in (Place.RESID_PRE, Place.RESID_POST):
        return layer, site.place is Place.RESID_PRE
    if site.read_at != site:
        raise SiteError(
            f"{site} is read at {site.read_at} and written at {site.written_at}, and is no activation"
        )
    if site.place is Place.RESID_MID:
        return _reads_mid(layer, site), True
    if site.place is Place.ATTN_Z:
        return projection_of(layer, site), True
    names: tuple[tuple[str, ...], tuple[str, ...]] = (_ATTENTION, _MLP)
    if (after := _norms_after(layer)) is not None:
        names = ((after[0],), (after[1],))
    if site.place is Place.MLP_IN:
        names = ((), _MLP)
    module = _named(layer, *names[site.place in (Place.MLP_IN, Place.MLP_OUT)])
    if module is None:
        raise SiteError(f"{site} does not exist in {type(layer).__name__}")
    return module, site.place is Place.MLP_IN


def attention_of(layer: nn.Module, site: Site) -> nn.Module:
    """The attention of the site's layer. Raises SiteError if there is none."""
    if (module := _named(layer, *_ATTENTION)) is None:
        raise SiteError(f"{site} does not exist in {type(layer).__name__}")
    return module


def projection_of(layer: nn.Module, site: Site) -> nn.Module:
    """What projects the heads' outputs of a site's layer to the stream. Raises SiteError if there is none."""
    attention = attention_of(layer, site)
    module = _named(attention, *_PROJECTIONS)
    if module is None or _input_width(module) is None:
        kind = type(attention).__name__
        raise SiteError(f"{site} does not exist: in {kind} no projection of the heads' outputs is found")
    return module


def _input_width(module: nn.Module) -> int | None:
    """How wide the input of a linear module is, be it torch's, GPT-2's or vLLM's."""
    widths = (getattr(module, name, None) for name in ("in_features", "nx", "input_size"))
    return next((width for width in widths if isinstance(width, int)), None)


def site_width(model: PreTrainedModel, site: Site) -> int:
    """How wide the activations of a site are. Raises SiteError as `site_module` does."""
    width: int | None = model.config.get_text_config().hidden_size
    if site.place is Place.ATTN_Z:
        width = _input_width(site_module(model, site)[0])
    if width is None:
        raise SiteError(f"{site} does not exist: the width of its activations is not told")
    return width


def widths_of(model: PreTrainedModel) -> Widths:
    """How wide the activations of a model are at all of its sites."""
    own = []
    for layer in range(len(decoder_layers(model))):
        site = Site(layer, Place.ATTN_Z)
        with suppress(SiteError):  # Where heads' outputs are no place.
            own.append((site, site_width(model, site)))
    stream: int = model.config.get_text_config().hidden_size
    return Widths(stream, tuple((site, width) for site, width in own if width != stream))


@torch.inference_mode()
def norm_gain(model: PreTrainedModel, site: Site) -> Tensor:
    """By what the norm before the MLP of a site's layer multiplies its stream over the root mean square.

    float32 [d] on the CPU. Raises SiteError for a norm of another kind, and for a gain that is 0 somewhere.
    """
    norm = _reads_mid(decoder_layers(model)[site.layer], site)
    width = site_width(model, site)
    # So large that what a norm adds to the mean square is nothing.
    tried = 1e3 * torch.stack(
        (torch.ones(width), torch.randn(width, generator=torch.Generator().manual_seed(0)))
    )
    given: Tensor = norm(tried[None].to(model.device))[0].float().cpu()
    gain: Tensor = given[0]
    unit = tried[1] / tried[1].square().mean().sqrt()
    if not torch.allclose(given[1], unit * gain, rtol=1e-4, atol=1e-4 * float(gain.abs().max())):
        raise SiteError(
            f"{site}: what the MLP reads is not its stream over the root mean square, times a gain"
        )
    if not bool(torch.isfinite(1.0 / gain).all()):
        raise SiteError(f"{site}: the gain of the norm before the MLP is 0 for some of the stream")
    return gain


def _norms_after(layer: nn.Module) -> tuple[str, str] | None:
    """The names of the norms of what attention and the MLP add, if a layer has both."""
    return next((after for after in _NORMS_AFTER if _named(layer, after[1]) is not None), None)


def _reads_mid(layer: nn.Module, site: Site) -> nn.Module:
    """The module that reads the stream between attention and the MLP: the norm before the MLP or, where there
    is none, the MLP. Raises SiteError for layers that have no such stream."""
    kind = type(layer).__name__
    if getattr(layer, "use_parallel_residual", False):
        raise SiteError(f"{site} does not exist: in {kind} attention and the MLP read the same stream")
    after = _norms_after(layer) or ("", "")
    norm = _named(layer, *(name for name in _NORMS_BEFORE_MLP if name != after[0]))
    # Without a norm before the MLP, only one after it tells that the MLP reads the stream itself.
    module = norm or (_named(layer, *_MLP) if after[1] else None)
    if module is None:
        raise SiteError(
            f"{site} does not exist: in {kind} no norm reads a stream between attention and the MLP"
        )
    return module


def all_sites(model: PreTrainedModel) -> Iterator[Site]:
    """Every site of a model that is an activation, layer by layer."""
    for layer in range(len(decoder_layers(model))):
        for site in (Site(layer, place) for place in Place):
            if site.read_at == site:
                yield site
