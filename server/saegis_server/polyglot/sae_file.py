"""A trained JumpReLU autoencoder: its equations, its measures, and its file in SAELens's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class TrainedSAE:
    """JumpReLU in float32: W_enc [d, m], b_enc [m], W_dec [m, d] of unit rows, b_dec [d], threshold [m]."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    @property
    def width(self) -> int:
        """d, the width of the residual stream."""
        return self.W_enc.shape[0]

    @property
    def features(self) -> int:
        """m, the number of features."""
        return self.W_enc.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations f = p·1[p > θ], p = (x − b_dec) W_enc + b_enc, θ ≥ 0; [..., d] → [..., m]."""
        p = (x - self.b_dec) @ self.W_enc + self.b_enc
        return torch.relu(p) * (p > self.threshold)

    def decode(self, f: Tensor) -> Tensor:
        """Reconstruction f W_dec + b_dec; [..., m] → [..., d]."""
        return f @ self.W_dec + self.b_dec


@dataclass(frozen=True)
class Fit:
    """How well an SAE reconstructs: share of variance unexplained, active features a token, share that
    never fires."""

    fvu: float
    l0: float
    dead: float


@torch.no_grad()
def measure(sae: TrainedSAE, activations: Iterable[Tensor]) -> Fit:
    """Fit on batches [n, d]; the variance is taken about the mean of all of them."""
    x = torch.cat(list(activations))
    error, active = 0.0, 0.0
    fired = torch.zeros(sae.features, dtype=torch.bool)
    for start in range(0, len(x), 4096):
        part = x[start : start + 4096]
        f = sae.encode(part)
        error += (part - sae.decode(f)).double().square().sum().item()
        active += (f > 0).sum().item()
        fired |= (f > 0).any(0)
    variance = (x.double() - x.double().mean(0)).square().sum().item()
    return Fit(error / variance, active / len(x), 1 - fired.double().mean().item())


def save_sae(sae: TrainedSAE, folder: Path, model_name: str, layer: int, metadata: dict[str, object]) -> None:
    """Write `cfg.json` and `sae_weights.safetensors` (float32) as SAELens 6 lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {
        "architecture": "jumprelu",
        "d_in": sae.width,
        "d_sae": sae.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": None,
            "model_name": model_name,
            "hook_name": f"blocks.{layer}.hook_resid_post",
            "hf_hook_name": f"model.layers.{layer}",
            "hook_head_index": None,
            "prepend_bos": True,
            **metadata,
        },
    }
    (folder / "cfg.json").write_text(json.dumps(cfg, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    tensors = {name: getattr(sae, name).contiguous().float() for name in names}
    save_file(tensors, str(folder / "sae_weights.safetensors"))


def load_sae(folder: Path) -> TrainedSAE:
    """Read back what `save_sae` wrote."""
    return TrainedSAE(**load_file(str(folder / "sae_weights.safetensors")))
