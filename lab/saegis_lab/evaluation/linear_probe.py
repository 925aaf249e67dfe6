"""The linear probe: logistic regression on activations, the usual detector that features are held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: Steps of L-BFGS, and the largest entry of the gradient at which it ends.
_STEPS, _FLAT = 1000, 1e-10


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """What a fitted probe says of activations. weights: float64 [d]; bias: a number."""

    weights: Tensor
    bias: float

    def scores(self, x: Tensor) -> Tensor:
        """The log odds that each of x [n, d] is wanted, float64 [n]."""
        return x.double() @ self.weights + self.bias


def probe_loss(parameters: Tensor, x: Tensor, wanted: Tensor, penalty: float) -> Tensor:
    """The mean of log(1 + exp(-y·z)) over the rows of x, plus penalty/2·‖w‖²; a scalar.

    parameters: float64 [d + 1], the weights w and then the bias, which is not penalised; z = x·w + bias;
    wanted: bool [n], y is 1 where it is true and -1 elsewhere.
    """
    weights, bias = parameters[:-1], parameters[-1]
    signs = wanted.to(x.dtype) * 2.0 - 1.0
    return softplus(-signs * (x @ weights + bias)).mean() + 0.5 * penalty * weights.square().sum()


def fitted_probe(x: Tensor, wanted: Tensor, penalty: float) -> LinearProbe:
    """The probe of least loss on activations x [n, d], each coordinate over its deviation from its mean.

    wanted: bool [n], some true and some false. penalty: above 0, so that there is exactly one such probe.
    """
    x = x.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 0.0, deviation, torch.ones_like(deviation))
    even = (x - mean) / scale
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, device=x.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [parameters],
        max_iter=_STEPS,
        tolerance_grad=_FLAT,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = probe_loss(parameters, even, wanted, penalty)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    weights = parameters.detach()[:-1] / scale
    return LinearProbe(weights, float(parameters.detach()[-1] - mean @ weights))
