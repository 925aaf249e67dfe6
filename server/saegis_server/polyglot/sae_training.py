"""A sparse-autoencoder trainer for any stream of activations: BatchTopK (Bussmann et al. 2024), kept as a
JumpReLU.

While training, the k·n strongest activations of a batch of n tokens stay on. What is kept is the JumpReLU
whose
threshold is the running mean of the weakest activation that stayed on. Features that have not fired for a
while are
revived by having them reconstruct the error (the auxiliary loss of Gao et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from saegis_server.polyglot.sae_file import TrainedSAE


@dataclass(frozen=True)
class SAETraining:
    """Settings of the trainer. `k` is the wanted mean number of active features a token."""

    features: int = 1024
    k: int = 20
    steps: int = 3000
    learning_rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.3
    auxiliary: float = 1 / 16
    dead_after: int = 60
    seed: int = 11


class BatchTopK(nn.Module):
    """The autoencoder as it is trained, on activations scaled to a mean norm of √d. W_enc [d, m], W_dec
    [m, d]."""

    threshold: Tensor
    silent: Tensor

    def __init__(self, mean: Tensor, settings: SAETraining) -> None:
        super().__init__()
        width = mean.shape[0]
        generator = torch.Generator().manual_seed(settings.seed)
        rows = torch.randn(settings.features, width, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        self.W_dec = nn.Parameter(rows)
        self.W_enc = nn.Parameter(rows.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(settings.features))
        self.b_dec = nn.Parameter(mean.clone())
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("silent", torch.zeros(settings.features, dtype=torch.long))

    def loss(self, x: Tensor, settings: SAETraining) -> tuple[Tensor, Tensor]:
        """(loss to minimise, FVU of the batch) for x [n, d]; keeps account of silent features and the
        threshold."""
        p = torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)
        weakest = torch.topk(p.detach().flatten(), settings.k * len(x), sorted=False).values.min()
        active = p * (p >= weakest)
        error = x - (active @ self.W_dec + self.b_dec)
        fvu = error.square().sum() / (x - x.mean(0)).square().sum()
        with torch.no_grad():
            self.threshold.lerp_(weakest, 0.01 if self.threshold > 0 else 1.0)
            fired = (active > 0).any(0)
            self.silent.add_(1).masked_fill_(fired, 0)
        return fvu + settings.auxiliary * self._revival(x, error.detach(), settings), fvu.detach()

    def _revival(self, x: Tensor, error: Tensor, settings: SAETraining) -> Tensor:
        dead = self.silent > settings.dead_after
        count = int(dead.sum())
        if count == 0:
            return x.new_zeros(())
        p = torch.relu((x - self.b_dec.detach()) @ self.W_enc[:, dead] + self.b_enc[dead])
        top = torch.topk(p, min(count, x.shape[1] // 2), dim=1)
        kept = torch.zeros_like(p).scatter(1, top.indices, top.values)
        return (error - kept @ self.W_dec[dead]).square().sum() / error.square().sum()

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the decoder's rows back to unit length."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def finished(self, scale: float) -> TrainedSAE:
        """The JumpReLU in the units of the model's own activations x = scaled / `scale`; rows of W_dec
        have length 1."""
        threshold = torch.full_like(self.b_enc, self.threshold.item() / scale)
        return TrainedSAE(
            W_enc=self.W_enc.detach().clone(),
            b_enc=self.b_enc.detach() / scale,
            W_dec=self.W_dec.detach().clone(),
            b_dec=self.b_dec.detach() / scale,
            threshold=threshold,
        )


def _rate(step: int, settings: SAETraining) -> float:
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup, left)


def train_sae(activations: Iterable[Tensor], settings: SAETraining) -> TrainedSAE:
    """Train on batches of float32 [n, d]. Raises ValueError when the stream ends before `settings.steps`
    batches."""
    stream = iter(activations)
    first = next(stream)
    scale = math.sqrt(first.shape[1]) / first.norm(dim=1).mean().item()
    model = BatchTopK(first.mean(0) * scale, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.999))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("sae", total=settings.steps)
        for step in range(settings.steps):
            batch = first if step == 0 else next(stream, None)
            if batch is None:
                raise ValueError(f"activations: the stream ended after {step} of {settings.steps} batches")
            optimizer.param_groups[0]["lr"] = _rate(step, settings)
            loss, fvu = model.loss(batch * scale, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            model.normalise()
            if step % 10 == 0:
                dead = int((model.silent > settings.dead_after).sum())
                progress.update(bar, description=f"sae  fvu {fvu.item():.3f}  dead {dead}")
            if step % 500 == 0:
                progress.print(
                    f"step {step}  fvu {fvu.item():.4f}  l0 {settings.k}  threshold {model.threshold:.3f}"
                )
            progress.update(bar, advance=1)
    return model.finished(scale)
