"""BatchTopK and its Matryoshka groups against loops in float64, and against SAELens."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.training.objectives import BatchTopK
from tests.training.objective_cases import FEATURES, TOKENS, WIDTH, batch, objective
from tests.training.sae_lens_training import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    gradients,
    losses,
    with_weights_of,
)

GROUPS = [(), (4, 8, 12), (24,), (1, 23)]


@pytest.mark.parametrize("groups", GROUPS)
def test_the_loss_is_its_definition(groups: tuple[int, ...]) -> None:
    made, x = objective(BatchTopK, k=2.5, groups=groups), batch(2)
    W_enc, W_dec = made.W_enc.double(), made.W_dec.double()
    p = (x.double() - made.b_dec) @ W_enc + made.b_enc
    strongest = sorted(((p[t, i].item(), t, i) for t in range(TOKENS) for i in range(FEATURES)), reverse=True)
    strongest = [place for place in strongest[: int(2.5 * TOKENS)] if place[0] > 0]
    prefixes = list(accumulate(groups or (FEATURES,)))
    total = 0.0
    for prefix in prefixes:
        rebuilt = made.b_dec.detach().double().repeat(TOKENS, 1)
        for value, token, feature in strongest:
            if feature < prefix:
                rebuilt[token] += value * W_dec[feature].detach()
        total += (x - rebuilt).square().sum().item() / (TOKENS * WIDTH)
    found = made.loss(x, 1.0)
    assert found.total.item() == pytest.approx(total / len(prefixes), rel=1e-5)
    assert found.l0.item() == len(strongest) / TOKENS
    fired = torch.zeros(FEATURES, dtype=torch.bool)
    fired[[feature for _, _, feature in strongest]] = True
    assert torch.equal(made.silent == 0, fired)
    spread = (x.double() - x.double().mean(0)).square().sum()
    if len(prefixes) == 1:
        assert found.fvu.item() == pytest.approx(total * TOKENS * WIDTH / float(spread), rel=1e-5)


def test_loss_and_gradients_are_those_of_sae_lens() -> None:
    made, x = objective(BatchTopK, k=3), batch(2)
    config = BatchTopKTrainingSAEConfig(
        d_in=WIDTH, d_sae=FEATURES, k=3, rescale_acts_by_decoder_norm=False, aux_loss_coefficient=0.0
    )
    theirs = with_weights_of(made, BatchTopKTrainingSAE(config))
    ours, mse = made.loss(x, 1.0).total, losses(theirs, x)["mse_loss"]
    torch.testing.assert_close(ours * WIDTH, mse)
    expected = gradients(theirs, mse)
    for name, gradient in gradients(made, ours * WIDTH).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_matryoshka_is_that_of_sae_lens() -> None:
    """They add the prefixes' errors up; ours is the mean."""
    made, x = objective(BatchTopK, k=3, groups=(4, 8, 12)), batch(2)
    config = MatryoshkaBatchTopKTrainingSAEConfig(
        d_in=WIDTH,
        d_sae=FEATURES,
        k=3,
        matryoshka_widths=[4, 12, 24],
        rescale_acts_by_decoder_norm=False,
        aux_loss_coefficient=0.0,
    )
    theirs = with_weights_of(made, MatryoshkaBatchTopKTrainingSAE(config))
    total = torch.stack(list(losses(theirs, x).values())).sum()
    ours = made.loss(x, 1.0).total
    torch.testing.assert_close(ours * WIDTH * 3, total)
    expected = gradients(theirs, total)
    for name, gradient in gradients(made, ours * WIDTH * 3).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(hint=st.floats(0.0, 10.0), k=st.floats(0.1, FEATURES), seed=st.integers(0, 1000))
def test_the_choice_is_exact_whatever_it_is_looked_for_from(hint: float, k: float, seed: int) -> None:
    made = objective(BatchTopK, seed=seed, k=k)
    made.hint.fill_(hint)
    x = batch(seed + 1)
    centred = (x - made.b_dec).detach()
    p = torch.addmm(made.b_enc, centred, made.W_enc).detach()
    places, values = made._strongest(centred)
    count = min(max(1, int(k * TOKENS)), int((p > 0).sum()))
    kept = torch.zeros_like(p)
    kept[places.rows, places.columns] = values
    top = torch.topk(p.flatten(), count, sorted=False)
    expected = torch.zeros(p.numel()).scatter(0, top.indices, top.values).reshape(p.shape)
    assert torch.equal(kept, expected)


def test_the_threshold_is_the_running_mean_of_the_weakest() -> None:
    made = objective(BatchTopK, k=2, steps=80)
    mean = 0.0
    for number in range(6):
        x = batch(10 + number)
        p = ((x - made.b_dec) @ made.W_enc + made.b_enc).relu().flatten()
        weakest = torch.topk(p, 2 * TOKENS).values.min().item()
        # 5 % of 80 steps are 4.
        mean = weakest if number == 0 else mean + (weakest - mean) / 4
        made.loss(x, 1.0)
        assert made.threshold.item() == pytest.approx(mean, rel=1e-5)


def test_what_is_kept_gives_the_same_features_in_the_models_units() -> None:
    """f(x) of the finished SAE is f(scale·x)/scale of the one in training; rows have length 1."""
    made = objective(BatchTopK, k=3)
    made.normalise()
    made.loss(batch(2), 1.0)
    sae = made.finished(4.0)
    x = batch(5)
    p = ((4.0 * x - made.b_dec) @ made.W_enc + made.b_enc).detach()
    f = p * (p > made.threshold)
    torch.testing.assert_close(4.0 * sae.encode(x), f.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        4.0 * sae.decode(sae.encode(x), x), (f.float() @ made.W_dec + made.b_dec).detach()
    )
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(FEATURES))
