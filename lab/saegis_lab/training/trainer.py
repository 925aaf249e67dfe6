"""The trainer: activations in, a sparse autoencoder out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from rich.console import Console
from torch import Tensor, nn

from saegis_lab.training.batch_topk import BatchTopK
from saegis_lab.training.checkpoint import Checkpoints
from saegis_lab.training.display import TrainingDisplay
from saegis_lab.training.jumprelu import JumpReLU
from saegis_lab.training.objective import Objective
from saegis_lab.training.settings import Precision, SAETraining, TrainedArchitecture
from saegis_lab.training.standard import Standard
from saegis_server.sae.autoencoder import SparseAutoencoder

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
    `settings.checkpoint_every` steps, and at the end; one that is there is resumed. For that the first
    batches are read again and thrown away, so `activations` must begin anew and be the same ones: a seeded
    stream. Nothing but the first weights is drawn at random, so a resumed run gives what an unbroken one
    gives. origin: what the activations are, by name, such as their model and site; a checkpoint of others is
    refused.

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
    with torch.autocast(x.device.type, torch.bfloat16, enabled=_in_bfloat16(settings, x.device)):
        losses = objective.loss(x, settings.sparsity(step))
    loss = losses.total
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    objective.project_gradient()
    nn.utils.clip_grad_norm_(objective.parameters(), settings.clip)
    optimizer.step()
    objective.normalise()
    display.advance(step)
    if display.wanted(step):
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is not finite at step {step}; set a lower learning_rate")
        dead = objective.dead.float().mean().item()
        display.show(step, loss.item(), losses.fvu.item(), losses.l0.item(), dead)


def _in_bfloat16(settings: SAETraining, device: torch.device) -> bool:
    if settings.precision is Precision.AUTO:
        return device.type == "cuda"
    return settings.precision is Precision.BFLOAT16


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
