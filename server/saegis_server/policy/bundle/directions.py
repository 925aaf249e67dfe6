"""Directions: the vectors of a bundle's safetensors files, checked so that a rule can rely on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from saegis_server.policy.errors import BundleError
from saegis_server.problem import Problem

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_directions(data: bytes, file: str) -> Mapping[str, Tensor]:
    """The vectors of a file by name, float32 [d], finite and not zero.

    Raises BundleError with every tensor that is none, and for a file that is no safetensors file.
    """
    try:
        tensors = load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise BundleError([Problem(f"is no whole safetensors file: {error}", file=file)]) from error
    vectors = {}
    problems = []
    for name, tensor in sorted(tensors.items()):
        vectors[name] = tensor.to(torch.float32) if tensor.dtype in _FLOATS else tensor
        if fault := _fault(vectors[name]):
            problems.append(Problem(fault, name, file))
    if not vectors:
        problems.append(Problem("holds no tensor", file=file))
    if problems:
        raise BundleError(problems)
    return MappingProxyType(vectors)


def _fault(vector: Tensor) -> str:
    """What keeps a tensor from being a direction; empty where nothing does."""
    if vector.dtype != torch.float32:
        kind = str(vector.dtype).removeprefix("torch.")
        return f"is of type {kind}; a direction holds floats of 16, 32 or 64 bits"
    if vector.dim() != 1 or not len(vector):
        return f"has the shape {list(vector.shape)}; a direction has one axis, as wide as the model"
    if not bool(torch.isfinite(vector).all()):
        return "holds numbers that are not finite in float32"
    if not bool(vector.any()):
        return "is zero everywhere, and so points nowhere"
    return ""
