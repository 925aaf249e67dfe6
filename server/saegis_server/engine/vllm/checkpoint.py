"""Checkpoints: the folder from which vLLM reads a model, which may have to be written anew.

vLLM's attention on a CPU takes heads of some widths alone. Heads of another width are made wider by zeros,
which changes no number that the model computes: a head of width h becomes one of width w with

    q' = √(w/h)·q, since scores are divided by √w and no longer by √h
    the halves of q and k, which the rotation pairs, apart by w/2, and the base of the rotation b^(w/h), so
    that the first h/2 pairs turn as before and the others are 0
    zeros for the rest of q, k and v, and for the columns of the output's projection that read it

The start compares the logits with Transformers', of the model as it was.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

#: The widths of heads for which vLLM has attention on a CPU.
WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
#: Models whose heads can be made wider: theirs have names and a rotation as above, and vLLM's code of them
#: reads the width of heads from the configuration.
_FAMILIES = ("llama", "mistral")
_HEADED = re.compile(r".*\.self_attn\.(?P<part>[qkvo])_proj\.(?P<kind>weight|bias)")


class UnservedModelError(ValueError):
    """A model that the vLLM engine does not serve, and why."""


@contextmanager
def checkpoint_of(model: PreTrainedModel, path: Path | None = None) -> Iterator[str]:
    """A folder, or hub id, from which vLLM can read the model, while this is open.

    path: where it was read from; without one, or where heads are made wider, it is written into a folder that
    is gone afterwards. Raises UnservedModelError for heads that vLLM does not take and that cannot be wider.
    """
    width = head_width(model.config.get_text_config())
    if width in WIDTHS and path is not None:
        yield str(path)
        return
    with TemporaryDirectory(prefix="saegis-vllm-") as folder:
        if width in WIDTHS:
            model.save_pretrained(folder)
        else:
            _save_wider(model, Path(folder), width)
        yield folder


def head_width(config: Any) -> int:
    """How wide the heads of a model's attention are."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _save_wider(model: PreTrainedModel, folder: Path, width: int) -> None:
    config = model.config.get_text_config()
    kind, rope = config.model_type, getattr(config, "rope_parameters", None) or {}
    wider = next((each for each in WIDTHS if each > width), None)
    unfit = (
        f"heads of width {width}, for which vLLM has no attention on a CPU ({', '.join(map(str, WIDTHS))})"
    )
    if kind not in _FAMILIES or wider is None or rope.get("rope_type", "default") != "default" or width % 2:
        raise UnservedModelError(f"the model ({kind}) has {unfit}; the embedded engine serves it")
    if model.dtype != torch.float32:
        raise UnservedModelError(
            f"the model has {unfit}; they are made wider in float32 alone, and it is served in "
            f"{str(model.dtype).removeprefix('torch.')}"
        )
    told = copy.deepcopy(config)
    told.head_dim = wider
    base = float(rope.get("rope_theta", getattr(config, "rope_theta", 10000.0)))
    told.rope_parameters = {**rope, "rope_type": "default", "rope_theta": base ** (wider / width)}
    told.architectures = [type(model).__name__]
    told.save_pretrained(folder)
    tied = bool(config.tie_word_embeddings)
    weights = {
        name: _wider(name, tensor, width, wider).contiguous().clone()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _wider(name: str, tensor: Tensor, width: int, wider: int) -> Tensor:
    """A weight with heads of another width; as it is if it has none."""
    found = _HEADED.fullmatch(name)
    if found is None or (found["part"] == "o" and found["kind"] == "bias"):
        return tensor
    if found["part"] == "o":
        rows = tensor.reshape(tensor.shape[0], -1, width)
        made = rows.new_zeros(*rows.shape[:-1], wider)
        made[..., :width] = rows
        return made.flatten(1)
    heads = tensor.reshape(-1, width, *tensor.shape[1:])
    made = heads.new_zeros(heads.shape[0], wider, *heads.shape[2:])
    if found["part"] == "v":
        made[:, :width] = heads
    else:
        half = width // 2
        scale = (wider / width) ** 0.5 if found["part"] == "q" else 1.0
        made[:, :half], made[:, wider // 2 : wider // 2 + half] = (
            heads[:, :half] * scale,
            heads[:, half:] * scale,
        )
    return made.flatten(0, 1)
