"""Digests: a name for a value made of dataclasses, tuples, mappings, numbers, texts and tensors.

Everything in it counts, also a field that a class will have later, and whatever is told is told with its kind
and length: two values that differ have different digests, and equal ones the same in every process.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hashlib import _Hash


def digest_of(value: object) -> str:
    """SHA-256 of a value, in hexadecimal; a part that has a `digest` of its own is told by it.

    Numbers count as float64, so 2 is 2.0 and -0.0 is 0.0; tensors count by their bytes; mappings by their
    keys, whatever their order. Raises TypeError for anything else.
    """
    state = hashlib.sha256()
    _tell_inside(state, value)
    return state.hexdigest()


def _tell(state: "_Hash", value: object) -> None:
    own = getattr(value, "digest", None)
    _tell_inside(state, value if own is None else own)


def _tell_inside(state: "_Hash", value: object) -> None:
    match value:
        case None:
            state.update(b"-")
        case str():
            text = value.encode()
            state.update(b"s%d:" % len(text) + text)
        case float() | int():
            state.update(b"n" + struct.pack("<d", value + 0.0))
        case Tensor():
            state.update(f"t{value.dtype}{list(value.shape)}:".encode())
            state.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        case tuple():
            state.update(b"(%d:" % len(value))
            for part in value:
                _tell(state, part)
        case Mapping():
            _tell_inside(state, tuple((str(key), value[key]) for key in sorted(value, key=str)))
        case _ if is_dataclass(value):
            state.update(f"d{type(value).__name__}:".encode())
            for field in fields(value):
                _tell(state, getattr(value, field.name))
        case _:
            raise TypeError(f"{type(value).__name__} has no digest")
