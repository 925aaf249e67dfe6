"""The trainer on data whose true features are known, and the file of its result as SAELens reads it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from saegis_lab.training.trainer import train_sae
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.checks import measure
from saegis_server.sae.formats.saelens import save_sae
from tests.tiers import few
from tests.training.sae_lens_training import SAE
from tests.training.worlds import ACTIVE, BATCH, NOWHERE, WIDTH, World, settings, world

CASES: dict[str, dict[str, object]] = {
    "batchtopk": {"k": ACTIVE},
    "jumprelu": {"architecture": "jumprelu", "k": ACTIVE},
    "matryoshka": {"k": ACTIVE, "groups": (16, 32, 48)},
    "jumprelu, plain penalty": {"architecture": "jumprelu", "l0_coefficient": 0.02},
    "standard": {"architecture": "standard", "l1_coefficient": 1.0},
}
#: The largest FVU, and the range of the L0, with which each reconstructs the world.
EXPECTED = {
    "batchtopk": (0.09, 2.7, 3.3),
    "matryoshka": (0.1, 2.7, 3.3),
    "jumprelu": (0.11, 2.5, 3.3),
    "jumprelu, plain penalty": (0.1, 2.5, 4.5),
    "standard": (0.12, 3.0, 12.0),
}


@pytest.fixture(scope="module")
def known() -> World:
    return world()


@pytest.fixture(scope="module", params=few(list(CASES), 2))
def case(request: pytest.FixtureRequest, known: World) -> tuple[str, SparseAutoencoder]:
    """The name of a case, and what its training gives."""
    name = str(request.param)
    return name, train_sae(known.batches(1), settings(**CASES[name]), console=NOWHERE)


def test_it_reconstructs_sparsely_and_finds_the_true_features(
    known: World, case: tuple[str, SparseAutoencoder]
) -> None:
    name, sae = case
    fit = measure(sae, known.tokens(2))
    largest, least_active, most_active = EXPECTED[name]
    assert fit.fvu < largest
    assert least_active < fit.l0 < most_active
    found = (sae.W_dec @ known.true.T).max(0).values
    assert (found > 0.9).float().mean() > 0.9
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(sae.features))


def test_sae_lens_reads_the_file_and_encodes_alike(
    known: World, case: tuple[str, SparseAutoencoder], tmp_path: Path
) -> None:
    sae = replace(case[1], hook_name="blocks.1.hook_resid_post", model_name="m")
    save_sae(sae, tmp_path)
    theirs, x = SAE.load_from_disk(str(tmp_path)), known.tokens(2, 1)
    torch.testing.assert_close(theirs.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), sae.decode(sae.encode(x), x), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"


def same(one: SparseAutoencoder, other: SparseAutoencoder) -> bool:
    pairs = zip(one.tensors().values(), other.tensors().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_the_seed_decides(known: World) -> None:
    short = settings(k=ACTIVE, steps=20)
    once = train_sae(known.batches(1), short, console=NOWHERE)
    assert same(once, train_sae(known.batches(1), short, console=NOWHERE))
    assert not same(once, train_sae(known.batches(1), replace(short, seed=1), console=NOWHERE))


@pytest.mark.parametrize("name", few(list(CASES), 2))
def test_the_scale_of_the_activations_does_not_matter(known: World, name: str) -> None:
    """Of activations 64 times as large (a power of 2: exactly) come the same features in their units."""
    short = settings(**CASES[name], steps=20)
    sae = train_sae(known.batches(1), short, console=NOWHERE)
    large = train_sae((64 * x for x in known.batches(1)), short, console=NOWHERE)
    x = known.tokens(2, 1)
    assert torch.equal(64 * sae.encode(x), large.encode(64 * x))
    assert torch.equal(64 * sae.decode(sae.encode(x), x), large.decode(large.encode(64 * x), 64 * x))


def kin(seed: int, parents: Tensor, children: Tensor) -> Iterator[Tensor]:
    """Batches in which each parent is active where one of its children is; 8 children have one parent."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        on = (torch.rand(BATCH, len(children), generator=generator) < 1.5 / len(children)).float()
        born = on.reshape(BATCH, len(parents), -1).amax(2)
        sizes = 1 + torch.rand(BATCH, len(children), generator=generator)
        yield 5 * (
            (on * sizes) @ children + born * (1 + torch.rand(born.shape, generator=generator)) @ parents
        )


@pytest.mark.slow
def test_the_first_group_learns_what_is_general() -> None:
    """Without groups a child's feature absorbs its parent; the first Matryoshka group has the parents."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.normalize(torch.randn(6 + 48, WIDTH, generator=generator), dim=1)
    parents, children = rows[:6], rows[6:]

    def nearest(groups: tuple[int, ...]) -> Tensor:
        """Of the first 8 features to each parent, as a cosine."""
        wanted = settings(k=ACTIVE, features=64, groups=groups)
        sae = train_sae(kin(1, parents, children), wanted, console=NOWHERE)
        return (sae.W_dec[:8] @ parents.T).max(0).values

    assert nearest((8, 56)).min() > 0.75
    assert nearest(()).min() < 0.5


def test_bfloat16_products_train_nearly_as_well(known: World) -> None:
    sae = train_sae(known.batches(1), settings(k=ACTIVE, steps=300, precision="bfloat16"), console=NOWHERE)
    assert sae.W_enc.dtype == torch.float32
    assert measure(sae, known.tokens(2)).fvu < 0.2


def test_a_stream_that_ends_early_is_an_error(known: World) -> None:
    with pytest.raises(ValueError, match=f"ended after 3 of 500 batches of {BATCH} tokens"):
        train_sae(islice(known.batches(1), 3), settings(k=ACTIVE), console=NOWHERE)


@pytest.mark.parametrize("shape", [(BATCH - 1, WIDTH), (BATCH, WIDTH + 1), (WIDTH,)])
def test_a_batch_of_another_shape_is_an_error(known: World, shape: tuple[int, ...]) -> None:
    stream = iter([next(known.batches(1)), torch.zeros(shape)])
    with pytest.raises(ValueError, match=r"batch 1 has the shape"):
        train_sae(stream, settings(k=ACTIVE), console=NOWHERE)


@pytest.mark.parametrize("bad", [0, 30])
def test_numbers_that_are_not_finite_are_an_error(known: World, bad: int) -> None:
    def spoilt() -> Iterator[Tensor]:
        for number, x in enumerate(known.batches(1)):
            if number == bad:
                x[3, 4] = torch.inf
            yield x

    with pytest.raises(ValueError, match="not finite"):
        train_sae(spoilt(), settings(k=ACTIVE, steps=60), console=NOWHERE)


def test_a_log_gets_some_lines_with_the_numbers(known: World) -> None:
    log = io.StringIO()
    train_sae(known.batches(1), settings(k=ACTIVE, steps=50), console=Console(file=log, width=200))
    lines = log.getvalue().splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0].split()[:4] == ["step", "1", "of", "50"]
    assert all(word in lines[-1] for word in ("step 50 of 50", "loss", "FVU", "L0 3.0", "dead"))


def test_a_terminal_shows_a_bar(known: World) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    train_sae(known.batches(1), settings(k=ACTIVE, steps=20), console=console)
    assert "20/20" in screen.getvalue()
    assert "FVU" in screen.getvalue()
