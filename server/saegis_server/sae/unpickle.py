"""A program of its own that turns a pickle of torch into safetensors: `python -I unpickle.py IN OUT`.

It imports nothing of Saegis, and torch unpickles with `weights_only`, so that tensors, numbers and texts are
all that can come out. What is no tensor is written as JSON into the file's metadata, under `stated`.
"""

import json
import sys

import torch
from safetensors.torch import save_file


def _flatten(value: object, name: str, tensors: dict[str, torch.Tensor], stated: dict[str, object]) -> None:
    """Fill in what lies below a value, by dotted names."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().to(torch.float32).contiguous().clone()
    elif isinstance(value, dict):
        for key, below in value.items():
            _flatten(below, f"{name}.{key}" if name else str(key), tensors, stated)
    elif isinstance(value, str | int | float | bool | None):
        stated[name] = value


def main(source: str, target: str) -> None:
    """Convert one file."""
    tensors: dict[str, torch.Tensor] = {}
    stated: dict[str, object] = {}
    loaded = torch.load(source, map_location="cpu", weights_only=True)
    _flatten(loaded, "", tensors, stated)
    save_file(tensors, target, metadata={"stated": json.dumps(stated, allow_nan=False)})


if __name__ == "__main__":
    main(*sys.argv[1:])
