"""The checkpoint of a training run: all that it needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from saegis_lab.training.objective import Objective
from saegis_lab.training.settings import SAETraining

CHECKPOINT_FILE = "checkpoint.pt"
#: How far the mean norm of the first batch may differ between the runs: on a GPU sums differ a little.
_SCALE_TOLERANCE = 1e-3


class CheckpointError(ValueError):
    """A checkpoint that does not belong to this run, or cannot be read."""


def plain_settings(settings: SAETraining) -> dict[str, Any]:
    """The settings as numbers, strings and lists."""
    plain = dataclasses.asdict(settings)
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, str) else value
        for name, value in plain.items()
    }


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its checkpoint, of which there is one, and what it is known by.

    origin: where its activations come from, by name. scale: the factor on them.
    """

    folder: Path
    origin: Mapping[str, str | int | bool]
    scale: float

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / CHECKPOINT_FILE

    def save(self, objective: Objective, optimizer: Optimizer, step: int) -> None:
        """Write the state of a run whose next step is `step`, in place of the one before. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "run": {**plain_settings(objective.settings), **self.origin},
            "width": len(objective.b_dec),
            "scale": self.scale,
            "step": step,
            "objective": objective.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        waiting = self.path.with_suffix(".part")
        torch.save(content, waiting)
        os.replace(waiting, self.path)

    def load(self, objective: Objective, optimizer: Optimizer) -> int:
        """Put the saved state into a run; returns its next step, 0 where nothing is saved.

        Raises CheckpointError for a checkpoint of other settings or other activations, naming what differs.
        """
        if not self.path.exists():
            return 0
        try:
            content = torch.load(self.path, map_location=objective.b_dec.device, weights_only=True)
            run, width, scale = content["run"], content["width"], content["scale"]
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            # torch's own message recommends to load the file unsafely.
            reason = type(error).__name__
            raise CheckpointError(
                f"{self.path} cannot be read ({reason}); delete it to start anew"
            ) from error
        _check_same(self.path, run, {**plain_settings(objective.settings), **self.origin})
        if width != len(objective.b_dec) or abs(scale / self.scale - 1.0) > _SCALE_TOLERANCE:
            raise CheckpointError(
                f"{self.path} was made with other activations (width {width}, scale {scale:.6g}) than these "
                f"(width {len(objective.b_dec)}, scale {self.scale:.6g}); delete it to start anew"
            )
        objective.load_state_dict(content["objective"])
        optimizer.load_state_dict(content["optimizer"])
        return int(content["step"])


def _check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """How often checkpoints are made may differ; nothing else."""
    for name in sorted((stored.keys() | wanted.keys()) - {"checkpoint_every"}):
        if stored.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{path} was made with {name}={stored.get(name)}, not {wanted.get(name)}; "
                "give the same settings to go on, or delete it to start anew"
            )
