"""Support: whether the engine can run a model, found by a pass of a few tokens and never guessed by its name.

Attention over a cache is all that the engine keeps of a text. So each layer must call attention exactly once,
through Transformers' interface, with the mask that Transformers made, and see no later token; what a model
keeps beside that (a state, a convolution's last inputs) would be lost between two steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from saegis_server.engine.torch.attention import attend_with, mix, refusing, unsupported
from saegis_server.engine.torch.context import StepContext
from saegis_server.engine.torch.masks import SeenPlaces, visible

_NAME = "saegis-survey"
#: A pass of so many tokens, of so many places of a cache.
_TOKENS, _PLACES = 3, 5
#: Types of layers that are called attention and keep a state.
_STATES = ("linear_attention", "lightning_attention")


class AttentionLayer(NamedTuple):
    """How a layer attends: the module that calls attention, and of what shape its keys and values are."""

    module: nn.Module
    heads: int
    key_width: int
    value_width: int


@dataclass
class _Calls:
    """What was seen of a model's attention: how often each layer called it."""

    model: PreTrainedModel
    layers: dict[int, AttentionLayer] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)


_running: ContextVar[_Calls] = ContextVar("survey")
#: What was found of each model: slots are sized before they are made, and all of it asks for the same.
_found: WeakKeyDictionary[PreTrainedModel, tuple[AttentionLayer, ...]] = WeakKeyDictionary()


def survey(model: PreTrainedModel) -> tuple[AttentionLayer, ...]:
    """How each layer of `model` attends, in order; found once.

    Its attention implementation is afterwards what it was. Raises UnsupportedModelError for a model that the
    engine cannot run.
    """
    if (known := _found.get(model)) is None:
        known = _found[model] = _survey(model)
    return known


def _survey(model: PreTrainedModel) -> tuple[AttentionLayer, ...]:
    config = model.config.get_text_config()
    check_kind(model)
    found = _Calls(model)
    token = _running.set(found)
    try:
        with refusing(model, "a pass over a cache"), _attending(model, _NAME):
            logits = _pass(model)
    finally:
        _running.reset(token)
    count = config.num_hidden_layers
    if wrong := [layer for layer in range(count) if found.calls.get(layer, 0) != 1]:
        times = found.calls.get(wrong[0], 0)
        raise unsupported(
            model, f"its layer {wrong[0]} calls attention {times} times in a pass, and not once"
        )
    if len(found.calls) != count:
        raise unsupported(model, f"attention is called for {len(found.calls)} layers, and it has {count}")
    if logits.shape[1:] != (1, config.vocab_size):
        given = " by ".join(map(str, logits.shape[1:]))
        raise unsupported(
            model, f"asked for the logits of one token of {config.vocab_size}, it gives {given}"
        )
    return tuple(found.layers[layer] for layer in range(count))


def check_kind(model: PreTrainedModel) -> None:
    """Raise UnsupportedModelError for a kind of model that keeps more of a text than keys and values."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise unsupported(model, "it is an encoder-decoder model")
    if getattr(model, "_is_stateful", False):
        raise unsupported(
            model,
            "it keeps a state of the text (state-space or recurrent layers), not keys and values only",
        )
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if others := sorted(kind for kind in kinds if not kind.endswith("_attention") or kind in _STATES):
        raise unsupported(
            model, f"it has layers that keep more of a text than keys and values ({', '.join(others)})"
        )
    if not model._can_set_attn_implementation():
        raise unsupported(model, "its code does not attend through Transformers' attention interface")


@contextmanager
def _attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation or "eager"
    attend_with(model, name)
    try:
        yield
    finally:
        attend_with(model, before)


@torch.inference_mode()
def _pass(model: PreTrainedModel) -> Tensor:
    """The logits of the last token of a pass as a step makes it, over more places than there are tokens."""
    positions = torch.arange(_TOKENS, device=model.device)[None]
    context = StepContext(positions=positions, length=_PLACES)
    output = model(
        input_ids=positions,
        position_ids=positions,
        past_key_values=SeenPlaces(context),
        use_cache=False,
        logits_to_keep=1,
        return_dict=True,
    )
    logits: Tensor = output.logits
    return logits


def _take_note(
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
    """Attention as `attend` does it, with what it was called with noted."""
    found, layer = _running.get(), getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise unsupported(found.model, "its attention does not tell which layer it is of")
    found.calls[layer] = found.calls.get(layer, 0) + 1
    found.layers[layer] = AttentionLayer(module, key.shape[1], key.shape[3], value.shape[3])
    if key.shape[:3] != value.shape[:3] or key.shape[2] != query.shape[2] or query.shape[1] % key.shape[1]:
        raise unsupported(found.model, f"its layer {layer} has not a key and a value for each token")
    keys, values = (functional.pad(each, (0, 0, 0, _PLACES - _TOKENS)).flatten(0, 1) for each in (key, value))
    mixed = mix(query, keys, values, attention_mask, scaling, softcap, s_aux)
    later = torch.ones(_TOKENS, _PLACES, dtype=torch.bool, device=query.device).triu(1)
    if attention_mask is not None and bool((attention_mask & later).any()):
        raise unsupported(found.model, f"its layer {layer} lets tokens see later ones")
    return mixed, None


AttentionInterface.register(_NAME, _take_note)
AttentionMaskInterface.register(_NAME, visible)
