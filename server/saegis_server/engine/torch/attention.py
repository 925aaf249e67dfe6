"""Attention over the slots' cache, registered with Transformers so that any model's own code calls it.

Grouped heads are never expanded: the queries of a group are the rows of one product with its keys.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from saegis_server.engine.torch.context import Mode, StepContext

NAME = "saegis"


class UnsupportedModelError(ValueError):
    """A model whose attention this engine cannot run faithfully."""


def install_attention(model: PreTrainedModel, context: StepContext) -> None:
    """Make `model` attend through `context`.

    Raises UnsupportedModelError if its code does not go through Transformers' attention interface.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{type(model).__name__} does not take a custom attention function")
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    for module in model.modules():
        if hasattr(module, "layer_idx") and hasattr(module, "is_causal"):
            module.saegis_context = context  # type: ignore[assignment]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens: query [B, H, Q, D], key and value [B, Hkv, Q, D] → [B, Q, H, D].

    The new keys and values are written to the cache first. Without a step (a capture), causal attention over
    the new tokens alone.
    """
    if extra.get("s_aux") is not None:
        raise UnsupportedModelError("attention sinks are not supported")
    context: StepContext = module.saegis_context  # type: ignore[assignment]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if context.mode is Mode.DECODE:
        keys, values = _write_decode(context, module.layer_idx, key, value)  # type: ignore[arg-type]
    elif context.mode is Mode.PREFILL:
        keys, values = _write_prefill(context, module.layer_idx, key, value)  # type: ignore[arg-type]
    else:
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
    positions = context.positions
    if positions is None or context.mode is Mode.CAPTURE:
        positions = torch.arange(query.shape[2], device=query.device).expand(query.shape[0], -1)
    return _attend(query, keys, values, positions, scale, sliding_window, softcap), None


def _write_decode(context: StepContext, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Write one token of each of the first B slots; returns what those slots hold, [B·Hkv, length, D]."""
    slots, places = context.begun()
    batch, heads = key.shape[0], key.shape[1]
    rows = torch.arange(batch, device=key.device)
    held = []
    for cache, new in ((slots.keys[layer], key), (slots.values[layer], value)):
        cache[rows, :, places[:, 0]] = new[:, :, 0]
        held.append(cache.view(-1, *cache.shape[2:])[: batch * heads, : context.length])
    return held[0], held[1]


def _write_prefill(context: StepContext, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Write a chunk of one slot's prompt; returns what that slot holds, [Hkv, length, D]."""
    slots, places = context.begun()
    held, slot = [], context.slot
    if slot is None:
        raise RuntimeError("a chunk of prompt needs its slot")
    for cache, new in ((slots.keys[layer], key), (slots.values[layer], value)):
        cache[slot, :, places[0]] = new[0].transpose(0, 1)
        held.append(cache[:, :, : context.length].index_select(0, slot)[0])
    return held[0], held[1]


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    batch, heads, tokens, width = query.shape
    groups = keys.shape[0] // batch
    grouped = query.reshape(batch * groups, (heads // groups) * tokens, width)
    scores = torch.bmm(grouped, keys.transpose(1, 2)).to(torch.float32) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(batch, groups, heads // groups, tokens, keys.shape[1])
    places = torch.arange(keys.shape[1], device=query.device)
    visible = places <= positions[:, :, None]
    if window is not None:
        visible = visible & (places > positions[:, :, None] - window)
    scores = torch.where(visible[:, None, None], scores, -torch.inf)
    weights = torch.softmax(scores, dim=-1).to(query.dtype).view(*grouped.shape[:2], keys.shape[1])
    mixed = torch.bmm(weights, values).view(batch, heads, tokens, width)
    return mixed.transpose(1, 2)
