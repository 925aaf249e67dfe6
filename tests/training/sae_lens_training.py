"""SAELens's trainers as the tests' oracle, given the weights of one of ours."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from saegis_lab.training.objectives import Objective

with warnings.catch_warnings():
    # TransformerLens warns of a module of its own that SAELens still imports.
    warnings.simplefilter("ignore")
    from sae_lens import (
        SAE,
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
    )
    from sae_lens.saes.sae import TrainStepInput

__all__ = [
    "SAE",
    "BatchTopKTrainingSAE",
    "BatchTopKTrainingSAEConfig",
    "JumpReLUTrainingSAE",
    "JumpReLUTrainingSAEConfig",
    "MatryoshkaBatchTopKTrainingSAE",
    "MatryoshkaBatchTopKTrainingSAEConfig",
    "StandardTrainingSAE",
    "StandardTrainingSAEConfig",
    "gradients",
    "losses",
    "with_weights_of",
]


def with_weights_of(objective: Objective, theirs: Any) -> Any:
    """`theirs`, a training SAE of theirs, with all parameters that both have."""
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            getattr(theirs, name).copy_(parameter)
    return theirs


def losses(
    theirs: Any, x: Tensor, dead: Tensor | None = None, coefficients: dict[str, float] | None = None
) -> dict[str, Tensor]:
    """The terms of their loss on x [n, d], by their names."""
    step = TrainStepInput(
        sae_in=x,
        coefficients=coefficients or {},
        dead_neuron_mask=dead,
        n_training_steps=0,
        is_logging_step=False,
    )
    return dict(theirs.training_forward_pass(step).losses)


def gradients(module: Any, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of `loss` to each parameter of `module`, by name."""
    module.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: each.grad.clone() for name, each in module.named_parameters() if each.grad is not None}
