"""Random SAEs and activations for the tests of this folder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saegis_server.sae.autoencoder import TENSORS, Architecture, SparseAutoencoder
from saegis_server.steering.rows import Norm

WIDTH, FEATURES = 10, 24


def random_tensors(
    architecture: Architecture, seed: int, width: int = WIDTH, features: int = FEATURES
) -> dict[str, Tensor]:
    """The tensors of an SAE, float32, normally distributed; thresholds are positive."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"d": width, "m": features}
    tensors = {
        name: 0.5 * torch.randn([sizes[axis] for axis in axes], generator=generator)
        for name, axes in TENSORS[architecture].items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return tensors


def build(architecture: Architecture, tensors: Mapping[str, Any], **form: Any) -> SparseAutoencoder:
    """An SAE of these tensors."""
    return SparseAutoencoder(architecture, **tensors, **form)


def random_sae(
    architecture: Architecture = Architecture.JUMPRELU,
    seed: int = 0,
    *,
    norm: Norm = Norm.NONE,
    apply_b_dec_to_input: bool = True,
    name: str = "sae",
    width: int = WIDTH,
    features: int = FEATURES,
    k: int | None = None,
    grouped: bool = False,
) -> SparseAutoencoder:
    """An SAE with random weights."""
    return build(
        architecture,
        random_tensors(architecture, seed, width, features),
        norm=norm,
        apply_b_dec_to_input=apply_b_dec_to_input,
        hook_name="blocks.1.hook_resid_post",
        model_name="random",
        name=name,
        k=k,
        grouped=grouped,
    )


def random_activations(tokens: int, seed: int = 1, width: int = WIDTH) -> Tensor:
    """Activations [tokens, width], float32, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(tokens, width, generator=generator) + 0.4
