"""Harvests: what they hold, how they go on, and an SAE that is trained on one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from saegis_lab.training.activations import Buffer, activations_of, shuffled_batches
from saegis_lab.training.harvest import Harvest, HarvestError
from saegis_lab.training.run import Source, run
from saegis_lab.training.settings import SAETraining
from saegis_lab.training.texts import Encoder, TextSplit
from saegis_lab.training.trainer import CheckpointError
from saegis_server.engine.torch.loading import load_model
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.training.subjects import SITE, SubjectFiles, write_subject
from tests.training.worlds import NOWHERE

ORIGIN: dict[str, str | int | bool] = {"model": "tiny", "raw": False}
ROWS = [tiny.prompt_of(seed, 3 + seed % 7) for seed in range(300)]
PLACE = Site.parse(SITE)


def grow(folder: Path, tokens: int, rows: list[list[int]] = ROWS) -> Harvest:
    harvest = Harvest(folder)
    harvest.grow(tiny.model("gpt2"), PLACE, rows, ORIGIN, tokens, frozenset({ROWS[5][1]}))
    return harvest


def test_it_holds_every_activation_once(tmp_path: Path) -> None:
    harvest = grow(tmp_path, 10**9)
    assert len(harvest.shards) == 3
    held = torch.cat(list(islice(harvest.chunks(0), 3)))
    read = torch.cat(
        list(activations_of(tiny.model("gpt2"), PLACE, ROWS, Buffer(), frozenset({ROWS[5][1]}), 1))
    )
    assert len(held) == harvest.tokens == len(read)
    torch.testing.assert_close(held[held[:, 0].argsort()], read[read[:, 0].argsort()], rtol=1e-4, atol=1e-4)


def test_it_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    whole, broken = grow(tmp_path / "whole", 10**9), grow(tmp_path / "broken", 1)
    assert len(broken.shards) == 1
    (tmp_path / "broken" / "000001.part").write_bytes(b"half a shard")
    grow(tmp_path / "broken", 10**9)
    for one, other in zip(whole.shards, broken.shards, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_each_pass_has_every_shard_in_an_order_of_its_own(tmp_path: Path) -> None:
    harvest = grow(tmp_path, 10**9)
    first, second = (list(islice(harvest.chunks(seed), 30)) for seed in (1, 1))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    lengths = {len(chunk) for chunk in first}
    for start in range(0, 30, 3):
        assert {len(chunk) for chunk in first[start : start + 3]} == lengths
    assert any(not torch.equal(first[0], first[start]) for start in range(3, 30, 3))


def test_of_another_origin_it_is_refused(tmp_path: Path) -> None:
    harvest = grow(tmp_path, 1)
    with pytest.raises(HarvestError, match="was made with raw False, not True"):
        harvest.grow(tiny.model("gpt2"), PLACE, ROWS, {**ORIGIN, "raw": True}, 1)
    harvest.shards[0].write_bytes(b"no shard")
    with pytest.raises(HarvestError, match=r"000000\.safetensors cannot be read"):
        _ = harvest.tokens
    with pytest.raises(HarvestError, match="cannot be read"):
        Harvest(tmp_path / "nowhere").check(ORIGIN)


def test_an_sae_is_trained_on_what_is_kept(tmp_path: Path) -> None:
    """As good as one trained on what the model reads meanwhile, and only with the harvest's own texts."""
    files: SubjectFiles = write_subject(tmp_path)
    loaded = load_model(str(files.model))
    split = TextSplit([files.texts], held_out=0.2)
    source = Source(loaded, PLACE, split, Encoder(loaded.tokenizer, 128), harvest=Harvest(tmp_path / "kept"))
    assert source.harvest is not None
    held = source.gather(source.harvest, 10**9, lambda _: None)
    settings = SAETraining(features=128, k=8, steps=60, batch=256, dead_after=20_000)
    batches = shuffled_batches(source.harvest.chunks(0), Buffer(256, 4096))
    assert next(batches).shape == (256, tiny.WIDTH)
    result = run(source, settings, tmp_path / "sae", NOWHERE)
    assert result.text_tokens == 0
    assert held > 10_000
    assert result.measured.fvu < 0.5
    other = Source(loaded, PLACE, TextSplit([files.texts], held_out=0.3), source.encoder, 1, source.harvest)
    with pytest.raises(HarvestError, match=r"held out '0\.2', not '0\.3'"):
        run(other, settings, tmp_path / "other", NOWHERE)


def test_a_checkpoint_of_a_smaller_harvest_is_refused(tmp_path: Path) -> None:
    files = write_subject(tmp_path)
    loaded = load_model(str(files.model))
    harvest = Harvest(tmp_path / "kept")
    source = Source(
        loaded, PLACE, TextSplit([files.texts], held_out=0.2), Encoder(loaded.tokenizer, 128), harvest=harvest
    )
    source.gather(harvest, 1, lambda _: None)
    settings = SAETraining(features=64, k=4, steps=2, batch=256, checkpoint_every=1)
    from saegis_lab.training.run import CHECKPOINT_FOLDER, Rows
    from saegis_lab.training.trainer import train_sae

    folder = tmp_path / "sae" / CHECKPOINT_FOLDER
    stream = source.batches(settings, Rows(source))
    train_sae(stream, settings, console=NOWHERE, folder=folder, origin=source.origin)
    source.gather(harvest, 10**9, lambda _: None)
    with pytest.raises(CheckpointError, match="harvested="):
        run(source, settings, tmp_path / "sae", NOWHERE)
