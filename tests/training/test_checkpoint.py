"""A run that was broken off and goes on gives what an unbroken one gives, and no checkpoint is mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saegis_lab.training.trainer import CHECKPOINT_FILE, CheckpointError, train_sae
from tests.training.worlds import ACTIVE, BATCH, NOWHERE, World, settings, world

CASES: dict[str, dict[str, object]] = {
    "batchtopk": {"k": ACTIVE, "groups": (16, 80), "dead_after": 5 * BATCH},
    "jumprelu": {"architecture": "jumprelu", "k": ACTIVE, "dead_after": 5 * BATCH},
    "standard": {"architecture": "standard", "l1_coefficient": 1.0},
}


class BrokenOff(Exception):
    """What ends a run in these tests."""


def breaking(known: World, after: int) -> Iterator[Tensor]:
    """Batches that end in an error."""
    for number, x in enumerate(known.batches(1)):
        if number == after:
            raise BrokenOff
        yield x


@pytest.fixture(scope="module")
def known() -> World:
    return world()


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_gives_the_same_bit_for_bit(known: World, name: str, tmp_path: Path) -> None:
    wanted = settings(**CASES[name], steps=40, checkpoint_every=15)
    unbroken = train_sae(known.batches(1), wanted, console=NOWHERE)
    for after in (20, 35):
        with pytest.raises(BrokenOff):
            train_sae(breaking(known, after), wanted, console=NOWHERE, folder=tmp_path)
    assert torch.load(tmp_path / CHECKPOINT_FILE, weights_only=True)["step"] == 30
    resumed = train_sae(known.batches(1), wanted, console=NOWHERE, folder=tmp_path)
    for tensor_name, tensor in unbroken.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[tensor_name]), tensor_name
    # All of it is saved at the end, so once more takes no further step.
    again = train_sae(known.batches(1), wanted, console=NOWHERE, folder=tmp_path)
    assert torch.equal(again.W_enc, resumed.W_enc)


@pytest.fixture
def saved(known: World, tmp_path: Path) -> Path:
    """The folder of a finished run."""
    origin = {"model": "one", "site": "layers.1"}
    short = settings(k=ACTIVE, steps=4)
    train_sae(known.batches(1), short, console=NOWHERE, folder=tmp_path, origin=origin)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "origin", "complaint"),
    [
        ({"features": 64}, {}, "was made with features=96, not 64"),
        ({"seed": 3}, {}, "was made with seed=0, not 3"),
        ({"groups": (16, 80)}, {}, r"was made with groups=\[\], not \[16, 80\]"),
        ({}, {"site": "layers.2"}, "was made with site=layers.1, not layers.2"),
        ({}, {"context": 64}, "was made with context=None, not 64"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    known: World,
    saved: Path,
    changes: dict[str, object],
    origin: dict[str, str | int | bool],
    complaint: str,
) -> None:
    wanted = settings(**{"k": ACTIVE, "steps": 4, **changes})
    with pytest.raises(CheckpointError, match=complaint):
        train_sae(
            known.batches(1),
            wanted,
            console=NOWHERE,
            folder=saved,
            origin={"model": "one", "site": "layers.1", **origin},
        )


def test_checkpoints_may_be_made_more_often_than_before(known: World, saved: Path) -> None:
    origin = {"model": "one", "site": "layers.1"}
    wanted = settings(k=ACTIVE, steps=4, checkpoint_every=2)
    train_sae(known.batches(1), wanted, console=NOWHERE, folder=saved, origin=origin)


def test_other_activations_under_the_same_name_are_noticed(known: World, saved: Path) -> None:
    origin = {"model": "one", "site": "layers.1"}
    stream = (1.5 * x for x in known.batches(1))
    with pytest.raises(CheckpointError, match="was made with other activations"):
        train_sae(stream, settings(k=ACTIVE, steps=4), console=NOWHERE, folder=saved, origin=origin)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_damaged_checkpoint_is_an_error(known: World, saved: Path, content: bytes) -> None:
    (saved / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be read \(\w+\); delete it"):
        train_sae(known.batches(1), settings(k=ACTIVE, steps=4), console=NOWHERE, folder=saved)


def test_a_checkpoint_that_holds_objects_is_not_unpickled(known: World, saved: Path) -> None:
    torch.save({"run": Path("x")}, saved / CHECKPOINT_FILE)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_sae(known.batches(1), settings(k=ACTIVE, steps=4), console=NOWHERE, folder=saved)
