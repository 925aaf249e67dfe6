"""The SAE trainer on data whose true features are known, and its file as SAELens reads it."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saegis_server.polyglot.sae_file import TrainedSAE, load_sae, measure, save_sae
from saegis_server.polyglot.sae_training import BatchTopK, SAETraining, train_sae
from tests.polyglot.oracle import SAE

SMALL = SAETraining(features=96, k=3, steps=600, learning_rate=3e-3, warmup=20)


def sparse_batches(true: Tensor, seed: int, offset: Tensor) -> Iterator[Tensor]:
    """Batches [256, d] of sums of about three of the rows of `true`, shifted by `offset`."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        on = torch.rand(256, len(true), generator=generator) < 3 / len(true)
        size = 1 + torch.rand(256, len(true), generator=generator)
        yield 5 * (on * size) @ true + offset


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    return true, torch.randn(32, generator=generator)


@pytest.fixture(scope="module")
def trained(world: tuple[Tensor, Tensor]) -> TrainedSAE:
    return train_sae(sparse_batches(world[0], 1, world[1]), SMALL)


def test_it_reconstructs_sparsely_and_finds_the_true_features(
    world: tuple[Tensor, Tensor], trained: TrainedSAE
) -> None:
    stream = sparse_batches(world[0], 2, world[1])
    fit = measure(trained, [next(stream) for _ in range(8)])
    assert fit.fvu < 0.1
    assert 2 < fit.l0 < 4
    found = (trained.W_dec @ world[0].T).max(0).values
    assert (found > 0.9).float().mean() > 0.8


def test_decoder_rows_have_length_one(trained: TrainedSAE) -> None:
    torch.testing.assert_close(trained.W_dec.norm(dim=1), torch.ones(trained.features))


def test_the_measure_is_the_definition(trained: TrainedSAE) -> None:
    x = torch.randn(500, trained.width)
    error = x - trained.decode(trained.encode(x))
    expected = error.var(0, correction=0).sum() + error.mean(0).square().sum()
    fit = measure(trained, [x[:123], x[123:]])
    assert fit.fvu == pytest.approx((expected / x.var(0, correction=0).sum()).item(), rel=1e-4)


def test_dead_features_come_back(world: tuple[Tensor, Tensor]) -> None:
    settings = SAETraining(features=96, k=1, steps=1, dead_after=0)
    batch = next(sparse_batches(world[0], 1, world[1]))[:8]
    model = BatchTopK(batch.mean(0), settings)
    model.silent.fill_(10)
    loss, fvu = model.loss(batch, settings)
    assert loss > fvu
    loss.backward()  # type: ignore[no-untyped-call]
    dead = model.silent > 0
    assert model.W_dec.grad is not None
    assert dead.any()
    assert model.W_dec.grad[dead].abs().sum() > 0


def test_a_stream_that_ends_early_is_an_error(world: tuple[Tensor, Tensor]) -> None:
    batches = [next(sparse_batches(world[0], 1, world[1]))] * 3
    with pytest.raises(ValueError, match="ended after 3 of 600 batches"):
        train_sae(batches, SMALL)


def test_sae_lens_reads_the_file_and_encodes_alike(trained: TrainedSAE, tmp_path: Path) -> None:
    save_sae(trained, tmp_path, "m", 1, {"fvu": 0.05, "l0": 3.0})
    theirs = SAE.load_from_disk(str(tmp_path))
    x = 3 * torch.randn(200, trained.width)
    torch.testing.assert_close(theirs.encode(x), trained.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs.decode(theirs.encode(x)), trained.decode(trained.encode(x)))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert theirs.cfg.metadata.hf_hook_name == "model.layers.1"
    again = load_sae(tmp_path)
    assert torch.equal(again.threshold, trained.threshold)
    assert math.isfinite(again.W_enc.sum().item())
