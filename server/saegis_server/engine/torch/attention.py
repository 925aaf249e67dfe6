"""Attention over the slots' cache, registered with Transformers so that any model's own code calls it.

Grouped heads are never expanded: the queries of a group are the rows of one product with its keys.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from saegis_server.engine.api import CanaryError
from saegis_server.engine.torch.context import Mode, StepContext
from saegis_server.engine.torch.masks import visible
from saegis_server.engine.torch.memory import is_want_of_memory
from saegis_server.steering.site import SiteError

NAME = "saegis"
#: How many characters of another library's message are told.
_BRIEF = 200


class UnsupportedModelError(ValueError):
    """A model that this engine cannot run faithfully, and why."""


def unsupported(model: PreTrainedModel, reason: object) -> UnsupportedModelError:
    """The refusal of a model, in one sentence."""
    return UnsupportedModelError(f"{type(model).__name__} cannot be served: {reason}")


@contextmanager
def refusing(model: PreTrainedModel, what: str) -> Iterator[None]:
    """While open, what Transformers' code fails with, whatever it is, is the model's refusal: `what` fails.

    Refusals of this engine's own pass as they are, and so does a want of memory.
    """
    try:
        yield
    except (UnsupportedModelError, CanaryError, SiteError):
        raise
    except Exception as error:
        if is_want_of_memory(error):
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        brief = shorten(first, _BRIEF, placeholder=" ...")
        raise unsupported(model, f"{what} fails ({type(error).__name__}: {brief})") from error


def install_attention(model: PreTrainedModel, attending: Iterable[nn.Module], context: StepContext) -> None:
    """Make `model` attend through `context`; `attending` are the modules that call attention."""
    attend_with(model, NAME)
    for module in attending:
        module.saegis_context = context  # type: ignore[assignment]


def attend_with(model: PreTrainedModel, name: str) -> None:
    """Let what reads text in `model` attend by the implementation of that name; a tower keeps its own."""
    config, text = model.config, model.config.get_text_config()
    own = [key for key in getattr(config, "sub_configs", ()) if getattr(config, key, None) is text]
    model.set_attn_implementation({"": name, own[0]: name} if own else name)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of new tokens: query [B, H, Q, D], key and value [B, Hkv, Q, D] → [B, Q, H, D].

    The new keys and values are written to the cache first. Without a step (a capture), attention is over the
    new tokens alone. attention_mask: which places each sees, bool [B, 1 or H, Q, K], as the model's own code
    asked for it. s_aux: [H], a logit of each head that takes weight and gives nothing (a sink).
    """
    context: StepContext = module.saegis_context  # type: ignore[assignment]
    if context.mode is Mode.DECODE:
        keys, values = _write_decode(context, module.layer_idx, key, value)  # type: ignore[arg-type]
    elif context.mode is Mode.PREFILL:
        keys, values = _write_prefill(context, module.layer_idx, key, value)  # type: ignore[arg-type]
    else:
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
    return mix(query, keys, values, attention_mask, scaling, softcap, s_aux), None


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


def mix(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The values [B·Hkv, K, Dv] by their weights for each query [B, H, Q, D] → [B, Q, H, Dv].

    keys: like values, of the queries' width. The rest: as in `attend`. Raises ValueError where `seen` is no
    mask of these places.
    """
    batch, heads, tokens, width = query.shape
    if seen is None or seen.dtype != torch.bool or seen.shape[2] != tokens or seen.shape[3] != keys.shape[1]:
        raise ValueError("attention does not get the mask that Transformers made for it")
    groups, scale = keys.shape[0] // batch, width**-0.5 if scaling is None else scaling
    each = heads // groups
    grouped = query.reshape(batch * groups, each * tokens, width)
    scores = torch.bmm(grouped, keys.transpose(1, 2)).to(torch.float32) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(batch, groups, each, tokens, keys.shape[1])
    # One mask for all heads, or one a head.
    by_group = seen[:, :, None] if seen.shape[1] == 1 else seen.reshape(batch, groups, each, *seen.shape[2:])
    scores = torch.where(by_group, scores, -torch.inf)
    if sinks is not None:
        sink = sinks.to(torch.float32).reshape(1, groups, each, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat((sink, scores), -1), dim=-1)[..., 1:]
    else:
        weights = torch.softmax(scores, dim=-1)
    weights = weights.to(query.dtype).reshape(*grouped.shape[:2], keys.shape[1])
    mixed = torch.bmm(weights, values).view(batch, heads, tokens, values.shape[-1])
    return mixed.transpose(1, 2).contiguous()  # as some models take it for granted


# Once, when this is imported: what is compiled is guarded by what is registered.
AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, visible)
