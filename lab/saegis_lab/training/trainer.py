"""The trainer: activations in, a sparse autoencoder out; with its checkpoint and its display."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor, nn
from torch.optim import Optimizer

from saegis_lab.training.objectives import BatchTopK, JumpReLU, Objective, Standard
from saegis_lab.training.settings import SAETraining, TrainedArchitecture
from saegis_server.sae.autoencoder import SparseAutoencoder

#: How many lines a whole run writes into a log.
_LINES = 10


class TrainingDisplay:
    """Shows loss, FVU, L0 and the share of dead features; use as a context manager."""

    def __init__(self, steps: int, first: int = 0, console: Console | None = None) -> None:
        """`first`: the step at which a resumed run goes on. Without a console: standard error."""
        self._console = console or Console(stderr=True, highlight=False)
        self._steps = steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=first)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def shows(self, step: int) -> bool:
        """Whether the numbers of this step are shown: reading them off a GPU takes time."""
        if self._console.is_terminal:
            return step % 10 == 0 or step + 1 == self._steps
        return step % max(1, self._steps // _LINES) == 0 or step + 1 == self._steps

    def advance(self, step: int) -> None:
        """Mark `step` as done."""
        self._bar.update(self._task, completed=step + 1)

    def show(self, step: int, loss: float, fvu: float, l0: float, dead: float) -> None:
        """Show the numbers of `step`; `dead` is a share."""
        figures = f"loss {loss:.4f}  FVU {fvu:.3f}  L0 {l0:.1f}  dead {dead:.1%}"
        if self._console.is_terminal:
            self._bar.update(self._task, description=figures)
        else:
            self._console.print(Text(f"  step {step + 1} of {self._steps}  {figures}"), soft_wrap=True)


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
    """Where a run keeps its one checkpoint, and what identifies it.

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
            # torch's own message recommends loading the file unsafely.
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


def _check_same(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise CheckpointError unless all settings but `checkpoint_every` are the same."""
    for name in sorted((stored.keys() | expected.keys()) - {"checkpoint_every"}):
        if stored.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} was made with {name}={stored.get(name)}, not {expected.get(name)}; "
                "give the same settings to go on, or delete it to start anew"
            )


_OBJECTIVES: dict[TrainedArchitecture, type[Objective]] = {
    TrainedArchitecture.BATCHTOPK: BatchTopK,
    TrainedArchitecture.JUMPRELU: JumpReLU,
    TrainedArchitecture.STANDARD: Standard,
}


def train_sae(
    activations: Iterable[Tensor],
    settings: SAETraining,
    *,
    console: Console | None = None,
    folder: Path | None = None,
    origin: Mapping[str, str | int | bool] = MappingProxyType({}),
) -> SparseAutoencoder:
    """Train on `settings.steps` batches of activations, float [settings.batch, d], on the device that they
    are on; returns the SAE in the units of these activations, on the CPU.

    Activations are scaled to a mean norm of √d, and the scale is folded into the weights in the end. The
    same activations and settings give the same SAE, on a CPU bit for bit.

    console: where progress is shown, by default standard error. folder: where a checkpoint is written every
    `settings.checkpoint_every` steps, and at the end; an existing one is resumed. A resumed run reads the
    first batches again and drops them, so `activations` must be a seeded stream from its start. Only the
    first weights are random, so a resumed run gives the same SAE as an unbroken one. origin: what the
    activations are, by name, such as their model and site; a checkpoint of others is refused.

    Raises ValueError for a stream that ends early, a batch of another shape, numbers that are not finite and
    a loss that diverges; CheckpointError for a checkpoint of other settings or other activations.
    """
    stream = _checked(iter(activations), settings)
    first = next(stream)
    scale = math.sqrt(first.shape[1]) / first.norm(dim=1).mean().item()
    objective = _OBJECTIVES[settings.architecture](first * scale, settings)
    fused = first.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(objective.parameters(), lr=settings.rate(0), fused=fused)
    checkpoints = Checkpoints(folder, origin, scale) if folder is not None else None
    begin = checkpoints.load(objective, optimizer) if checkpoints is not None else 0
    with TrainingDisplay(settings.steps, begin, console) as display:
        for step in range(settings.steps):
            batch = first if step == 0 else next(stream)
            if step < begin:
                continue
            _step(objective, optimizer, batch * scale, step, display)
            due = (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps
            if checkpoints is not None and due:
                checkpoints.save(objective, optimizer, step + 1)
    return objective.finished(scale)


def _step(
    objective: Objective, optimizer: torch.optim.Optimizer, x: Tensor, step: int, display: TrainingDisplay
) -> None:
    """One step of the optimizer on the scaled activations x [n, d]."""
    settings = objective.settings
    for group in optimizer.param_groups:
        group["lr"] = settings.rate(step)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.precision.in_bfloat16(x.device)):
        losses = objective.loss(x, settings.sparsity(step))
    loss = losses.total
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    objective.project_gradient()
    nn.utils.clip_grad_norm_(objective.parameters(), settings.clip)
    optimizer.step()
    objective.normalise()
    display.advance(step)
    if display.shows(step):
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is not finite at step {step}; set a lower learning_rate")
        dead = objective.dead.float().mean().item()
        display.show(step, loss.item(), losses.fvu.item(), losses.l0.item(), dead)


def _checked(stream: Iterator[Tensor], settings: SAETraining) -> Iterator[Tensor]:
    """The first `settings.steps` batches, float32, each of the right shape."""
    width = None
    for step in range(settings.steps):
        batch = next(stream, None)
        if batch is None:
            raise ValueError(
                f"activations: the stream ended after {step} of {settings.steps} batches of "
                f"{settings.batch} tokens; give more text, or ask for fewer steps"
            )
        width = width or batch.shape[-1]
        if batch.shape != (settings.batch, width):
            raise ValueError(
                f"activations: batch {step} has the shape {list(batch.shape)}, not {[settings.batch, width]}"
            )
        yield batch.float()
