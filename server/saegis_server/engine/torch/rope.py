"""RoPE: frequencies that depend on the longest text of a batch are frozen for the context that is served.

Else the length of one request would change the answers of the others, and of its own first tokens.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

#: Transformers' names of such kinds of RoPE.
_VARYING = ("dynamic", "longrope")


class FrozenRope(nn.Module):
    """What a model's RoPE gives for each position of one text as long as the context, and for no other."""

    def __init__(self, rope: nn.Module, length: int, dtype: torch.dtype, device: torch.device) -> None:
        """Of `rope`, for positions below `length`; the model runs in `dtype`."""
        super().__init__()
        x, positions = torch.empty(1, 1, 1, dtype=dtype, device=device), torch.arange(length, device=device)
        self._tables: dict[str | None, tuple[Tensor, ...]] = {}
        for layer_type, _ in _kinds(rope):
            named = {} if layer_type is None else {"layer_type": layer_type}
            given: Any = rope(x, positions[None], **named)
            self._single = isinstance(given, Tensor)
            self._tables[layer_type] = tuple(
                each[0].clone() for each in ((given,) if self._single else given)
            )

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """What the rotation takes, for positions of any shape."""
        found = tuple(table[position_ids] for table in self._tables[layer_type])
        return found[0] if self._single else found


def _kinds(module: nn.Module) -> Iterator[tuple[str | None, str]]:
    """The kinds of RoPE that a module gives, each with the type of the layers that it is for, if there are
    several."""
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, str):
        yield None, kind
    elif isinstance(kind, dict):
        yield from kind.items()


@torch.inference_mode()
def freeze_rope(model: PreTrainedModel, length: int) -> str | None:
    """Freeze what varies of a model's RoPE for texts of up to `length` tokens.

    Returns a sentence that says so, and for which texts Transformers would take other frequencies; None where
    nothing varies.
    """
    told: str | None = None
    for name, module in list(model.named_modules()):
        varying = sorted({kind for _, kind in _kinds(module) if kind.startswith(_VARYING)})
        if not varying or isinstance(module, FrozenRope):
            continue
        model.set_submodule(name, FrozenRope(module, length, model.dtype, model.device))
        told = f"RoPE ({', '.join(varying)}) is frozen for a context of {length} tokens"
        original = original_length(model)
        if original is not None and original < length:
            told += (
                f"; texts of up to {original} tokens, whose frequencies would else be others, get them too: "
                f"max_model_len {original} keeps to those"
            )
    return told


def original_length(model: PreTrainedModel) -> int | None:
    """The length up to which a model's RoPE was trained before it was extended, if it says so."""
    named = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    found = [
        each["original_max_position_embeddings"]
        for each in (named, *named.values())
        if isinstance(each, dict) and isinstance(each.get("original_max_position_embeddings"), int)
    ]
    return min(found, default=None)
