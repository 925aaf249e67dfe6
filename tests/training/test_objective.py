"""What all objectives share: the account of silence, the revival of dead features, rows of unit length."""

import math

import pytest
import torch
from torch import Tensor

from saegis_lab.training.objectives import BatchTopK, JumpReLU, Objective, revival
from tests.training.objective_cases import FEATURES, TOKENS, WIDTH, batch, objective
from tests.training.sae_lens_training import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, with_weights_of
from tests.training.worlds import ACTIVE, BATCH, settings, world


def with_dead(dead: list[int]) -> BatchTopK:
    made = objective(BatchTopK, k=3, auxiliary=0.5, dead_after=100)
    made.silent[dead] = 100
    return made


def naive_revival(made: BatchTopK, x: Tensor, error: Tensor, dead: list[int]) -> float:
    """‖e − ê‖² / ‖e‖², ê from each token's d/2 strongest dead features, in float64 and in loops."""
    missed = whole = 0.0
    for token in range(len(x)):
        p = {}
        for feature in dead:
            read = sum(
                (x[token, i] - made.b_dec[i]).item() * made.W_enc[i, feature].item() for i in range(WIDTH)
            )
            p[feature] = max(0.0, read + made.b_enc[feature].item())
        strongest = sorted(p, key=lambda feature: -p[feature])[: WIDTH // 2]
        for i in range(WIDTH):
            made_up = sum(p[feature] * made.W_dec[feature, i].item() for feature in strongest)
            missed += (error[token, i].item() - made_up) ** 2
            whole += error[token, i].item() ** 2
    return missed / whole


@pytest.mark.parametrize("dead", [[2], [1, 4, 7], list(range(12))])
def test_the_revival_is_its_definition(dead: list[int]) -> None:
    made, x, error = with_dead(dead), batch(3), 0.3 * batch(4)
    found = revival(made, x, error)
    assert found.item() == pytest.approx(naive_revival(made, x, error, dead), rel=1e-5)


def test_the_revival_is_that_of_sae_lens() -> None:
    """They take pre-activations as they are and do not divide by ‖e‖²: same where all are positive."""
    dead = list(range(12))
    made, x, error = with_dead(dead), batch(3), 0.3 * batch(4)
    with torch.no_grad():
        made.b_enc[dead] += 20.0
    theirs = with_weights_of(
        made,
        BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=WIDTH, d_sae=FEATURES, k=3, rescale_acts_by_decoder_norm=False, aux_loss_coefficient=1.0
            )
        ),
    )
    hidden = (x - made.b_dec) @ made.W_enc + made.b_enc
    expected = theirs.calculate_topk_aux_loss(x, x - error, hidden, made.dead) * TOKENS / error.square().sum()
    torch.testing.assert_close(revival(made, x, error), expected)


def test_the_revival_moves_the_dead_alone() -> None:
    dead = [1, 4, 7]
    made = with_dead(dead)
    with torch.no_grad():
        made.b_enc[dead] += 3.0
    revival(made, batch(3), batch(4).requires_grad_()).backward()  # type: ignore[no-untyped-call]
    alive = [feature for feature in range(FEATURES) if feature not in dead]
    for gradient, by_feature in ((made.W_dec.grad, 0), (made.W_enc.grad, 1), (made.b_enc.grad, 0)):
        assert gradient is not None
        per_feature = gradient.movedim(by_feature, 0).reshape(FEATURES, -1).abs().sum(1)
        assert (per_feature[dead] > 0).all()
        assert (per_feature[alive] == 0).all()
    assert made.b_dec.grad is None


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [(BatchTopK, "batchtopk"), (JumpReLU, "jumprelu")],
    ids=["batchtopk", "jumprelu"],
)
def test_dead_features_come_back(kind: type[Objective], architecture: str) -> None:
    """Of 72 features whose biases silence them, while 24 others do not do for 48 true ones."""

    def share_that_fires(auxiliary: float) -> float:
        stream = (x / 5 for x in world().batches(1))
        wanted = settings(
            architecture=architecture, k=ACTIVE, auxiliary=auxiliary, dead_after=5 * BATCH, steps=150
        )
        made = kind(next(stream), wanted)
        with torch.no_grad():
            made.b_enc[:72] -= 2.5
        optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
        for _ in range(wanted.steps):
            optimizer.zero_grad()
            made.loss(next(stream), 1.0).total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            made.normalise()
        return (made.silent[:72] < 2 * BATCH).float().mean().item()

    assert share_that_fires(1 / 32) > max(0.25, 1.5 * share_that_fires(0.0))


def test_without_dead_features_there_is_nothing_to_revive() -> None:
    assert revival(with_dead([]), batch(3), batch(4)).item() == 0.0


def test_silence_is_counted_in_tokens_and_ends_with_a_fire() -> None:
    made = objective(BatchTopK, k=3, dead_after=2 * TOKENS)
    fired = torch.zeros(FEATURES, dtype=torch.bool)
    fired[5] = True
    made.note_fired(torch.zeros_like(fired), TOKENS)
    assert not made.dead.any()
    made.note_fired(fired, TOKENS)
    assert made.silent.tolist() == [0 if feature == 5 else 2 * TOKENS for feature in range(FEATURES)]
    assert made.dead.sum() == FEATURES - 1


def test_the_gradient_of_unit_rows_is_turned_across_them() -> None:
    made = objective(BatchTopK, k=3)
    made.normalise()
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(FEATURES))
    gradient = torch.randn(FEATURES, WIDTH)
    made.W_dec.grad = gradient.clone()
    made.project_gradient()
    across = made.W_dec.grad
    assert (across * made.W_dec).sum(1).abs().max() < 1e-6
    # What was taken away lies along the rows.
    taken = gradient - across
    along = (taken * made.W_dec).sum(1).abs()
    torch.testing.assert_close(taken.norm(dim=1), along, rtol=1e-4, atol=1e-5)


def test_it_begins_with_the_encoder_as_the_decoder_turned_round() -> None:
    made = BatchTopK(batch(), objective(BatchTopK, k=3).settings)
    assert torch.equal(made.W_enc, made.W_dec.T)
    assert torch.equal(made.b_dec, batch().mean(0))
    assert made.W_dec[0].norm().item() == pytest.approx(1.0)
    assert math.isclose(made.b_enc.abs().sum().item(), 0.0)
