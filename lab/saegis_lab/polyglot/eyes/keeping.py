"""What both trainings share: checkpoints that an interrupted run goes on from, and progress that is told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

Setting = int | float | str


def share(step: int, steps: int, warmup: int) -> float:
    """Of the peak rate: up in a line, level, and down in a line over the last two fifths."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (0.4 * steps))


class Told(Protocol):
    """Tells one step's losses by their names."""

    def __call__(self, **losses: float) -> None: ...


class Keeper:
    """Keeps a training's modules and optimizers in `folder`, named by what is taught."""

    def __init__(
        self,
        what: str,
        folder: Path,
        settings: Mapping[str, Setting],
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self._what, self._settings = what, dict(settings)
        self._path = folder / f"{what}.pt"
        self._modules, self._optimizers = modules, optimizers
        folder.mkdir(parents=True, exist_ok=True)

    def keep(self, step: int) -> None:
        """Write the checkpoint after `step` steps; the one before it stays until this one is whole."""
        state = {
            "step": step,
            "run": self._settings,
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }
        fresh = self._path.with_suffix(".tmp")
        torch.save(state, fresh)
        fresh.replace(self._path)

    def resume(self) -> int:
        """Load the checkpoint, if there is one; returns the step to go on from. Raises ValueError if it
        belongs to a run with other settings."""
        if not self._path.exists():
            return 0
        state = torch.load(self._path, weights_only=True, map_location="cpu")
        if state["run"] != self._settings:
            raise ValueError(
                f"{self._path}: the checkpoint is of a run with other settings; remove it to start afresh"
            )
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        return int(state["step"])

    @contextmanager
    def progress(self, first: int, steps: int) -> Iterator[Told]:
        """A bar from step `first` to `steps`, beside it the losses' running means; a line every 100 steps."""
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        means: dict[str, float] = {}
        began, done = time.monotonic(), first
        with Progress(*columns) as shown:
            bar = shown.add_task(self._what, total=steps, completed=first)

            def told(**losses: float) -> None:
                nonlocal done
                done += 1
                for name, loss in losses.items():
                    means[name] = 0.95 * means.get(name, loss) + 0.05 * loss
                words = "  ".join(f"{name} {mean:.3f}" for name, mean in means.items())
                shown.update(bar, advance=1, description=f"{self._what}  {words}")
                if done % 20 == 0 or done == steps:
                    shown.print(f"{self._what}: step {done}  {words}  {time.monotonic() - began:.0f} s")

            yield told
