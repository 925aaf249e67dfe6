"""Weights: what those of a local folder will take of memory, by the headers of their files."""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from saegis_server.amounts import in_units
from saegis_server.engine.torch.loading import DTYPES, ModelLoadError
from saegis_server.engine.torch.memory import free_bytes

#: The bytes of a number of each kind in safetensors files.
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_FLOATS = ("F64", "F32", "F16", "BF16")


def weights_bytes(folder: Path, dtype: torch.dtype | None) -> int:
    """What the tensors of a folder's safetensors files take, those of floats in `dtype`, None for their own.

    A file that cannot be read counts as nothing: who loads it says what is wrong with it.
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                    part = file.get_slice(name)
                    kind = part.get_dtype()
                    size = _SIZES.get(kind, 1)
                    if dtype is not None and kind in _FLOATS:
                        size = dtype.itemsize
                    total += size * math.prod(part.get_shape())
        except (SafetensorError, OSError):
            continue
    return total


def require_room(spec: str, dtype: str, device: str) -> None:
    """Raise ModelLoadError where the weights in the folder `spec` take more than the device has free, or more
    than the host has, by way of which they come there."""
    wanted = DTYPES.get(dtype, torch.float32 if device == "cpu" else None)
    needed = weights_bytes(Path(spec), wanted) if Path(spec).is_dir() else 0
    for place in dict.fromkeys((device, "cpu")):
        if needed > (free := free_bytes(torch.device(place))):
            raise ModelLoadError(
                f"{spec}: the weights take {in_units(needed)}, but {in_units(free)} are free on {place}; "
                "a dtype of 16 bits takes half of float32"
            )
