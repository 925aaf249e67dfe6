"""JumpReLU against loops in float64, the formula of its thresholds' gradient, and SAELens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saegis_lab.training.objectives import JumpReLU
from saegis_lab.training.settings import SAETraining
from tests.training.objective_cases import FEATURES, TOKENS, WIDTH, batch, objective
from tests.training.sae_lens_training import (
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    gradients,
    losses,
    with_weights_of,
)

PLAIN: dict[str, Any] = {"architecture": "jumprelu", "l0_coefficient": 0.03, "bandwidth": 0.1}
AIMED: dict[str, Any] = {"architecture": "jumprelu", "k": 3, "bandwidth": 0.1}
BANDWIDTH = 0.1 * WIDTH**0.5


def pre_activations(made: JumpReLU, x: Tensor) -> Tensor:
    return ((x.double() - made.b_dec) @ made.W_enc.double() + made.b_enc).detach()


@pytest.mark.parametrize("changes", [PLAIN, AIMED], ids=["plain", "aimed"])
def test_the_loss_is_its_definition(changes: dict[str, Any]) -> None:
    made, x = objective(JumpReLU, **changes), batch(2)
    p, squared, active = pre_activations(made, x), 0.0, 0
    for token in range(TOKENS):
        rebuilt = made.b_dec.detach().double().clone()
        for feature in range(FEATURES):
            if p[token, feature] > made.threshold[feature]:
                rebuilt += p[token, feature] * made.W_dec[feature].detach()
                active += 1
        squared += (x[token] - rebuilt).square().sum().item()
    found = made.loss(x, 0.5)
    l0 = active / TOKENS
    penalty = 0.03 * l0 if changes is PLAIN else (l0 / 3 - 1) ** 2
    assert found.l0.item() == l0
    assert found.terms["error"].item() == pytest.approx(squared / (TOKENS * WIDTH), rel=1e-5)
    assert found.terms["sparsity"].item() == pytest.approx(0.5 * penalty, rel=1e-5)
    assert found.total.item() == pytest.approx(squared / (TOKENS * WIDTH) + 0.5 * penalty, rel=1e-5)


@pytest.mark.parametrize("changes", [PLAIN, AIMED], ids=["plain", "aimed"])
def test_the_gradient_of_the_thresholds_is_the_formula(changes: dict[str, Any]) -> None:
    """Equations 9 to 12 of the paper: the two pseudo-derivatives, in loops."""
    made, x = objective(JumpReLU, **changes), batch(2)
    p = pre_activations(made, x)
    on = p > made.threshold
    error = x - ((p * on) @ made.W_dec.double() + made.b_dec).detach()
    l0 = float(on.sum()) / TOKENS
    of_l0 = 0.03 if changes is PLAIN else 2 * (l0 / 3 - 1) / 3
    expected = torch.zeros(FEATURES, dtype=torch.float64)
    near = 0
    for token in range(TOKENS):
        for feature in range(FEATURES):
            threshold = made.threshold[feature].item()
            if abs(float(p[token, feature]) - threshold) < BANDWIDTH / 2:
                near += 1
                of_f = -2 * float(error[token] @ made.W_dec[feature].detach().double()) / (TOKENS * WIDTH)
                expected[feature] += -threshold / BANDWIDTH * of_f
                expected[feature] += -1 / BANDWIDTH * of_l0 / TOKENS
    assert near > 10
    found = gradients(made, made.loss(x, 1.0).total)["threshold"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_loss_and_gradients_are_those_of_sae_lens() -> None:
    made, x = objective(JumpReLU, **PLAIN), batch(2)
    config = JumpReLUTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES, jumprelu_bandwidth=BANDWIDTH)
    theirs = with_weights_of(made, JumpReLUTrainingSAE(config))
    terms = losses(theirs, x, coefficients={"l0": 0.03 * WIDTH})
    ours = made.loss(x, 1.0)
    torch.testing.assert_close(ours.terms["error"] * WIDTH, terms["mse_loss"])
    torch.testing.assert_close(ours.terms["sparsity"] * WIDTH, terms["l0_loss"])
    expected = gradients(theirs, terms["mse_loss"] + terms["l0_loss"])
    found = gradients(made, ours.total * WIDTH)
    assert found.keys() == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_of_one_token_the_steering_penalty_is_the_quadratic_one_of_sae_lens() -> None:
    """Theirs has the factor 2·target."""
    made, x = objective(JumpReLU, **AIMED), batch(2, tokens=1)
    config = JumpReLUTrainingSAEConfig(
        d_in=WIDTH,
        d_sae=FEATURES,
        jumprelu_bandwidth=BANDWIDTH,
        jumprelu_sparsity_loss_mode="quadratic",
        target_l0=3,
    )
    theirs = with_weights_of(made, JumpReLUTrainingSAE(config))
    expected = losses(theirs, x, coefficients={"l0": 1.0})["l0_loss"]
    found = made.loss(x, 1.0).terms["sparsity"]
    torch.testing.assert_close(found * 2 * 3, expected)
    ours, others = gradients(made, found * 6)["threshold"], gradients(theirs, expected)["threshold"]
    assert ours.abs().sum() > 0
    torch.testing.assert_close(ours, others, rtol=1e-4, atol=1e-5)


def test_it_begins_with_the_l0_that_is_aimed_at() -> None:
    first = batch(1, tokens=64)
    made = JumpReLU(first, SAETraining(features=FEATURES, **AIMED))
    assert made.loss(first, 1.0).l0.item() == pytest.approx(3.0, abs=0.05)


def test_thresholds_do_not_fall_below_zero() -> None:
    made = objective(JumpReLU, **AIMED)
    with torch.no_grad():
        made.threshold.sub_(1.0)
    made.normalise()
    assert made.threshold.min().item() == 0.0
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(FEATURES))


def test_what_is_kept_gives_the_same_features_in_the_models_units() -> None:
    made = objective(JumpReLU, **AIMED)
    sae, x = made.finished(4.0), batch(5)
    p = pre_activations(made, 4.0 * x)
    torch.testing.assert_close(4.0 * sae.encode(x), (p * (p > made.threshold)).float(), rtol=1e-4, atol=1e-4)
