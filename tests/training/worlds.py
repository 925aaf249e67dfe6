"""Activations of known features for the tests of training: sums of few of them, shifted by an offset."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from rich.console import Console
from torch import Tensor

from saegis_lab.training.settings import SAETraining

WIDTH, TRUE_FEATURES, ACTIVE, BATCH = 32, 48, 3, 256
#: Where tests that do not look at the progress let it go.
NOWHERE = Console(file=io.StringIO())


@dataclass(frozen=True)
class World:
    """Rows of length 1 [TRUE_FEATURES, WIDTH], about ACTIVE of which make up an activation, and an offset."""

    true: Tensor
    offset: Tensor

    def batches(self, seed: int) -> Iterator[Tensor]:
        """Batches of activations, float32 [BATCH, WIDTH], without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            on = torch.rand(BATCH, len(self.true), generator=generator) < ACTIVE / len(self.true)
            size = 1 + torch.rand(BATCH, len(self.true), generator=generator)
            yield 5 * (on * size) @ self.true + self.offset

    def tokens(self, seed: int, batches: int = 8) -> Tensor:
        """Some batches as one."""
        return torch.cat(list(islice(self.batches(seed), batches)))


def world(seed: int = 0) -> World:
    """Random features."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.normalize(torch.randn(TRUE_FEATURES, WIDTH, generator=generator), dim=1)
    return World(true, torch.randn(WIDTH, generator=generator))


def settings(**changes: object) -> SAETraining:
    """A short training that suits the world."""
    values: dict[str, object] = {
        "features": 96,
        "steps": 500,
        "batch": BATCH,
        "learning_rate": 3e-3,
        "dead_after": 60 * BATCH,
        **changes,
    }
    return SAETraining(**values)  # type: ignore[arg-type]
