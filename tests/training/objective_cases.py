"""Objectives with random weights, and batches for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from saegis_lab.training.objectives import Objective
from saegis_lab.training.settings import SAETraining

WIDTH, FEATURES, TOKENS = 10, 24, 16


def batch(seed: int = 1, tokens: int = TOKENS) -> Tensor:
    """Activations [tokens, WIDTH], float32, of norms around √WIDTH."""
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


T = TypeVar("T", bound=Objective)


def objective(kind: type[T], seed: int = 0, **changes: Any) -> T:
    """An objective of random weights: no row is of unit length, and no bias is 0."""
    values: dict[str, Any] = {"features": FEATURES, "batch": TOKENS, "auxiliary": 0.0, **changes}
    made = kind(batch(), SAETraining(**values))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.4 * noise.abs() if name == "threshold" else 0.4 * noise)
    return made
