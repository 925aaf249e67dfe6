"""Packing: the weights of linear products laid out as oneDNN reads them, once, for whatever runs the model.

Torch's own product of a few rows reads each weight as it lies, and on two threads hardly faster than on one.
oneDNN's reads blocks, which is several times as fast for the few rows of a decode. Every path through the
model, compiled or eager, uses the one packed weight, and the original is dropped, unless a table of
embeddings reads it too.
"""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from saegis_server.amounts import in_units
from saegis_server.engine.torch.memory import MappedFiles

#: For so many rows at once the blocks are laid out; the layout serves any other number.
_ROWS = 16
#: oneDNN fills the outputs of a weight up to a multiple of so many.
_BLOCK = 64
#: How many tokens are read to see what each weight is used for.
_TOKENS = 4
#: What each kind of module multiplies by its weight with, and the place of the weight among the arguments.
_PRODUCTS: dict[type[nn.Module], tuple[Callable[..., Any], int]] = {
    nn.Linear: (functional.linear, 1),
    Conv1D: (torch.addmm, 2),
}
#: What may use a weight besides where a table of embeddings has it too, which keeps the original.
_OF_TABLE: set[tuple[Callable[..., Any], int]] = {
    (functional.embedding, 1),
    *((getattr(Tensor, name).__get__, 0) for name in ("dtype", "device", "shape")),
}

_LIBRARY = torch.library.Library("saegis", "DEF")  # type: ignore[no-untyped-call]
# Inductor must not lay the packed weight out anew: its strides say nothing.
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor x, Tensor packed, Tensor? bias) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout),
)
_product = torch.ops.mkldnn._linear_pointwise.default


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = _product(x, packed, bias, "none", [], "")
    return product


def _shape_of_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


for _key in ("CPU", "MkldnnCPU"):
    _LIBRARY.impl("linear", _linear, _key)  # type: ignore[no-untyped-call]
torch.library.register_fake("saegis::linear", _shape_of_linear, lib=_LIBRARY)


def pays(model: PreTrainedModel) -> bool:
    """Whether a model is faster here with its weights packed: on an x86 processor, in float32, or in bfloat16
    where the processor multiplies it."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if model.device.type != "cpu" or not has_onednn or not _is_x86():
        return False
    return model.dtype == torch.float32 or (model.dtype == torch.bfloat16 and _multiplies_bfloat16())


def why_slow(model: PreTrainedModel) -> str | None:
    """Why a model is slow in its dtype on this processor, or None."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16 or not _is_x86() or _multiplies_bfloat16():
        return None
    return (
        "this processor does not multiply bfloat16 (it has neither avx512_bf16 nor amx_tile), in which the "
        "model then runs up to ten times slower than in float32: serve it with --dtype float32"
    )


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class PackedLinear(nn.Module):
    """A linear layer whose weight is packed."""

    packed: Tensor

    def __init__(self, packed: Tensor, bias: nn.Parameter | None) -> None:
        """`packed`: as `_packed` makes it of a weight [out, in]; bias: [out]."""
        super().__init__()
        self.register_buffer("packed", packed, persistent=False)
        self.out_features, self.in_features = packed.shape
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The weight [out, in] as it was, for whoever reads it: a copy."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """The product [..., out] of x [..., in] with the weight, and the bias added."""
        product: Tensor = torch.ops.saegis.linear(x, self.packed, self.bias)
        return product


class _Uses(TorchFunctionMode):
    """While open, notes by which functions, and as which argument, each of some tensors is used."""

    def __init__(self, watched: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._watched = watched
        self.seen: dict[int, set[tuple[object, int]]] = {key: set() for key in watched}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for place, given in enumerate(args):
            for leaf in tree_leaves(given):
                if id(leaf) in self._watched:
                    self.seen[id(leaf)].add((func, place if leaf is given else -1))
        for leaf in tree_leaves(kwargs or {}):
            if id(leaf) in self._watched:
                self.seen[id(leaf)].add((func, -1))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class _Found:
    """A weight [out, in] that is packed, its layers (parent, name, layer), and whether something else has it
    too, so that the original stays, or it lies in a mapped file: then nothing is given back for it."""

    weight: Tensor
    layers: tuple[tuple[nn.Module, str, nn.Module], ...]
    stays: bool

    @property
    def takes(self) -> int:
        """How many bytes it takes when it is packed."""
        outputs, inputs = self.weight.shape
        return math.ceil(outputs / _BLOCK) * _BLOCK * inputs * self.weight.itemsize


class Packing:
    """Which weights of a model are packed, what that takes, and the doing of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Read a few tokens by Transformers' own code, to see which weights are but multiplied by.

        None are found where packing does not pay.
        """
        self._found = list(_multiplied(model)) if pays(model) else []
        takes = [found.takes for found in self._found]
        self.takes, self.largest = sum(takes), max(takes, default=0)
        self.on_top = sum(found.takes for found in self._found if found.stays)

    def __len__(self) -> int:
        return len(self._found)

    def __str__(self) -> str:
        on_top = f", {in_units(self.on_top)} of it on top of what they took" if self.on_top else ""
        return f"{len(self)} weights are packed for this processor: {in_units(self.takes)}{on_top}"

    @property
    def meanwhile(self) -> int:
        """How many bytes more than before are taken at most while weights are packed, one after the other."""
        return self.on_top + self.largest

    def pack(self) -> None:
        """Put a PackedLinear in the place of each layer, and let go of the originals."""
        while self._found:
            found = self._found.pop()
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(found.weight.contiguous(), _ROWS)
            for parent, name, layer in found.layers:
                bias: nn.Parameter | None = layer.bias  # type: ignore[assignment]
                setattr(parent, name, PackedLinear(packed, bias))


def _layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """The layers of exactly the kinds that are packed: parent, name and layer."""
    for parent in model.modules():
        for name, layer in parent.named_children():
            if type(layer) in _PRODUCTS:
                yield parent, name, layer


@torch.inference_mode()
def _multiplied(model: PreTrainedModel) -> Iterator[_Found]:
    """The weights that are multiplied by, and used for nothing else but a table of embeddings."""
    weights: dict[int, nn.Parameter] = {}
    layers: dict[int, list[tuple[nn.Module, str, nn.Module]]] = {}
    for parent, name, layer in _layers(model):
        weight: nn.Parameter = layer.weight  # type: ignore[assignment]
        weights[id(weight)] = weight
        layers.setdefault(id(weight), []).append((parent, name, layer))
    others = {
        id(parameter)
        for module in model.modules()
        if type(module) not in _PRODUCTS
        for parameter in module.parameters(recurse=False)
    }
    files = MappedFiles()
    with _Uses(weights) as uses:
        tokens = torch.arange(_TOKENS)[None] % model.config.get_text_config().vocab_size
        model(input_ids=tokens, use_cache=False)
    for key, weight in weights.items():
        products = {_PRODUCTS[type(layer)] for _, _, layer in layers[key]}
        seen, shared = uses.seen[key], key in others
        if len(products) == 1 and products <= seen <= (products | _OF_TABLE if shared else products):
            turned = products == {_PRODUCTS[Conv1D]}
            stays = shared or files.holds(weight)
            yield _Found(weight.detach().T if turned else weight.detach(), tuple(layers[key]), stays)
