"""Sites: the named places of the forward pass where activations are read and steered."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from transformers import PreTrainedModel


class Place(StrEnum):
    """Where in a decoder layer: its input, its output, or what attention or the MLP adds to the stream."""

    RESID_PRE = "resid_pre"
    RESID_POST = "resid_post"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"


_SPELLINGS = (
    re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<place>\w+)"),
    re.compile(r"layers\.(?P<layer>\d+)\.(?P<place>\w+)"),
    re.compile(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(?P<layer>\d+)(?:\.output)?"),
    re.compile(r"layers\.(?P<layer>\d+)"),
)


class SiteError(ValueError):
    """A site that does not exist, or whose name is not understood."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in one layer. Written `layers.3.resid_post`."""

    layer: int
    place: Place

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.place}"

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Read a site's name: ours, TransformerLens's (`blocks.3.hook_resid_post`) or a module's path.

        A bare layer (`layers.3`, `model.layers.3`) is its output, resid_post. Raises SiteError.
        """
        for spelling in _SPELLINGS:
            if match := spelling.fullmatch(name):
                place = match.groupdict().get("place") or Place.RESID_POST
                if place in Place.__members__.values():
                    return cls(int(match["layer"]), Place(place))
        places = ", ".join(Place)
        raise SiteError(f"{name!r} is not a site; write layers.<number>.<place> with a place of {places}")


#: In what order a layer's places come in the forward pass.
_FORWARD = (Place.RESID_PRE, Place.ATTN_OUT, Place.MLP_OUT, Place.RESID_POST)


def forward_order(site: Site) -> tuple[int, int]:
    """What sorts sites in the order of the forward pass."""
    return site.layer, _FORWARD.index(site.place)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers of a causal language model of any family. Raises SiteError if unclear."""
    count = model.config.get_text_config().num_hidden_layers
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and _holds_layers(module)
    ]
    if len(found) != 1:
        raise SiteError(f"{type(model).__name__} has {len(found)} lists of {count} decoder layers, not one")
    return found[0]


def _holds_layers(modules: nn.ModuleList) -> bool:
    return all(_attention(module) is not None for module in modules)


def _named(layer: nn.Module, *names: str) -> nn.Module | None:
    for name in names:
        if isinstance(child := getattr(layer, name, None), nn.Module):
            return child
    return None


def _attention(layer: nn.Module) -> nn.Module | None:
    return _named(layer, "self_attn", "attn", "attention")


def site_module(model: PreTrainedModel, site: Site) -> tuple[nn.Module, bool]:
    """The module to hook for a site, and whether its input (True) or its output (False) is the activation.

    In models that normalise what attention and the MLP add (Gemma 2 and 3, OLMo 2), the contribution after
    that norm is the site. Raises SiteError if the model has no such layer or module.
    """
    layers = decoder_layers(model)
    if not 0 <= site.layer < len(layers):
        raise SiteError(f"{site} does not exist: the model has layers 0 to {len(layers) - 1}")
    layer = layers[site.layer]
    if site.place in (Place.RESID_PRE, Place.RESID_POST):
        return layer, site.place is Place.RESID_PRE
    sandwiched = _named(layer, "post_feedforward_layernorm") is not None
    if site.place is Place.ATTN_OUT:
        module = layer.post_attention_layernorm if sandwiched else _attention(layer)
    else:
        module = layer.post_feedforward_layernorm if sandwiched else _named(layer, "mlp")
    if not isinstance(module, nn.Module):
        raise SiteError(f"{site} does not exist in {type(layer).__name__}")
    return module, False


def all_sites(model: PreTrainedModel) -> Iterator[Site]:
    """Every site of a model, layer by layer."""
    for layer in range(len(decoder_layers(model))):
        for place in Place:
            yield Site(layer, place)
