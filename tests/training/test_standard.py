"""The standard autoencoder against loops in float64, and against SAELens."""

from __future__ import annotations

import pytest
import torch

from saegis_lab.training.objectives import Standard
from tests.training.objective_cases import FEATURES, TOKENS, WIDTH, batch, objective
from tests.training.sae_lens_training import (
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    gradients,
    losses,
    with_weights_of,
)


def standard() -> Standard:
    return objective(Standard, architecture="standard", l1_coefficient=2.0)


def test_the_loss_is_its_definition() -> None:
    made, x = standard(), batch(2)
    squared = penalty = 0.0
    for token in range(TOKENS):
        rebuilt = made.b_dec.detach().double().clone()
        for feature in range(FEATURES):
            p = ((x[token] - made.b_dec).double() @ made.W_enc[:, feature].double()).item()
            f = max(0.0, p + made.b_enc[feature].item())
            rebuilt += f * made.W_dec[feature].detach()
            penalty += f * made.W_dec[feature].double().norm().item()
        squared += (x[token] - rebuilt).square().sum().item()
    found = made.loss(x, 0.25).total
    assert found.item() == pytest.approx((squared + 0.25 * 2.0 * penalty) / (TOKENS * WIDTH), rel=1e-5)


def test_loss_and_gradients_are_those_of_sae_lens() -> None:
    made, x = standard(), batch(2)
    theirs = with_weights_of(made, StandardTrainingSAE(StandardTrainingSAEConfig(d_in=WIDTH, d_sae=FEATURES)))
    terms = losses(theirs, x, coefficients={"l1": 2.0})
    ours = made.loss(x, 1.0)
    torch.testing.assert_close(ours.terms["error"] * WIDTH, terms["mse_loss"])
    torch.testing.assert_close(ours.terms["sparsity"] * WIDTH, terms["l1_loss"])
    expected = gradients(theirs, terms["mse_loss"] + terms["l1_loss"])
    found = gradients(made, ours.total * WIDTH)
    assert found.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_rows_are_folded_to_unit_length_without_changing_the_reconstruction() -> None:
    made, x = standard(), batch(5)
    before = made.W_dec.detach().clone()
    made.normalise()
    assert torch.equal(made.W_dec, before)
    sae = made.finished(4.0)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(FEATURES))
    f = torch.relu((4.0 * x - made.b_dec) @ made.W_enc + made.b_enc)
    rebuilt = (f @ made.W_dec + made.b_dec).detach()
    torch.testing.assert_close(4.0 * sae.decode(sae.encode(x), x), rebuilt, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(4.0 * sae.encode(x), (f * before.norm(dim=1)).detach(), rtol=1e-4, atol=1e-4)
