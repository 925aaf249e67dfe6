"""The linear probe: its loss and its optimum against plain loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.evaluation.linear_probe import fitted_probe, probe_loss


def drawn(seed: int, count: int = 24, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and which of them are wanted; the last coordinate is the same everywhere."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=rng, dtype=torch.float64) * torch.arange(1.0, width + 1)
    x[:, -1] = 3.0
    wanted = x[:, 0] + torch.randn(count, generator=rng, dtype=torch.float64) > 0.0
    wanted[0], wanted[1] = True, False
    return x, wanted


def naive_loss(
    weights: list[float], bias: float, x: torch.Tensor, wanted: torch.Tensor, penalty: float
) -> float:
    losses = []
    for row, truth in zip(x.tolist(), wanted.tolist(), strict=True):
        z = sum(w * value for w, value in zip(weights, row, strict=True)) + bias
        losses.append(math.log1p(math.exp(-z if truth else z)))
    return sum(losses) / len(losses) + penalty / 2 * sum(w * w for w in weights)


def naive_gradient(
    weights: list[float], bias: float, x: torch.Tensor, wanted: torch.Tensor, penalty: float
) -> list[float]:
    gradient = [0.0] * (len(weights) + 1)
    for row, truth in zip(x.tolist(), wanted.tolist(), strict=True):
        z = sum(w * value for w, value in zip(weights, row, strict=True)) + bias
        error = (1 / (1 + math.exp(-z)) - truth) / len(x)
        for place, value in enumerate([*row, 1.0]):
            gradient[place] += error * value
    return [found + penalty * w for found, w in zip(gradient, [*weights, 0.0], strict=True)]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), penalty=st.sampled_from([0.0, 0.01, 1.0]))
def test_loss_and_gradient_are_those_of_a_loop(seed: int, penalty: float) -> None:
    x, wanted = drawn(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    parameters = 0.3 * torch.randn(x.shape[1] + 1, generator=rng, dtype=torch.float64)
    parameters.requires_grad_()
    loss = probe_loss(parameters, x, wanted, penalty)
    loss.backward()  # type: ignore[no-untyped-call]
    *weights, bias = parameters.tolist()
    assert loss.item() == pytest.approx(naive_loss(weights, bias, x, wanted, penalty), rel=1e-12)
    assert parameters.grad is not None
    assert parameters.grad.tolist() == pytest.approx(
        naive_gradient(weights, bias, x, wanted, penalty), abs=1e-12
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), penalty=st.sampled_from([1.0, 0.1, 0.0001]))
def test_the_fitted_probe_is_where_the_gradient_is_nothing(seed: int, penalty: float) -> None:
    """The loss is strictly convex, so there is no other such place."""
    x, wanted = drawn(seed)
    probe = fitted_probe(x.float(), wanted, penalty)
    x = x.float().double()
    deviation = x.std(0, correction=0)
    deviation[-1] = 1.0
    even = (x - x.mean(0)) / deviation
    weights = probe.weights * deviation
    bias = probe.bias + float(probe.weights @ x.mean(0))
    assert naive_gradient(weights.tolist(), bias, even, wanted, penalty) == pytest.approx([0.0] * 6, abs=1e-7)
    assert torch.allclose(probe.scores(x), even @ weights + bias, atol=1e-9)
    assert weights[-1] == 0.0
