"""A whole run: what it writes, what SAELens and the server make of it, and how it goes on after a break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saegis_lab.training import run as run_module
from saegis_lab.training.activations import activation_batches
from saegis_lab.training.held_out import SAMPLE_TOKENS
from saegis_lab.training.run import CHECKPOINT_FOLDER, Source, TrainingResult, run
from saegis_lab.training.settings import SAETraining
from saegis_lab.training.texts import Encoder, TextError, TextSplit
from saegis_lab.training.trainer import CheckpointError
from saegis_server.engine.sites import widths_of
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.rpc.server.config import SAESource
from saegis_server.rpc.server.sae_sources import check_sae, read_sae
from saegis_server.sae.files import load_sae
from saegis_server.steering.site import Site, SiteError
from tests.training.sae_lens_training import SAE
from tests.training.subjects import SITE, SubjectFiles, paragraphs, write_subject
from tests.training.worlds import NOWHERE

SETTINGS = SAETraining(features=128, k=8, steps=60, batch=256, dead_after=20_000, checkpoint_every=20)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SubjectFiles:
    return write_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def loaded(files: SubjectFiles) -> LoadedModel:
    return load_model(str(files.model))


def source(loaded: LoadedModel, files: SubjectFiles) -> Source:
    split = TextSplit([files.texts], held_out=0.2)
    return Source(loaded, Site.parse(SITE), split, Encoder(loaded.tokenizer, 128), reuse=2)


@pytest.fixture(scope="module")
def done(
    loaded: LoadedModel, files: SubjectFiles, tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    out = tmp_path_factory.mktemp("out") / "sae"
    return run(source(loaded, files), SETTINGS, out, NOWHERE)


def test_the_files_tell_all_of_it(done: TrainingResult, loaded: LoadedModel) -> None:
    assert sorted(path.name for path in done.path.iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
        "sample.txt",
    ]
    told = json.loads((done.path / "cfg.json").read_text())["metadata"]
    expected = {
        "model_name": "tiny-gpt2",
        "model_digest": loaded.digest,
        "hook_name": "blocks.1.hook_resid_post",
        "hf_hook_name": "transformer.h.1",
        "prepend_bos": False,
        "context_size": 128,
        "exclude_special_tokens": [256],
        "fvu": done.measured.fvu,
        "l0": done.measured.l0,
        "dead": done.measured.dead,
        "measured_tokens": done.measured.tokens,
        "training_tokens": 60 * 256,
        "text_files": ["texts.txt"],
        "reuse": 2,
    }
    assert {name: told[name] for name in expected} == expected
    assert told["training"]["features"] == 128
    assert told["training"]["architecture"] == "batchtopk"
    assert done.tokens == 60 * 256
    # Each activation is used twice, first tokens are left out, and some are read ahead.
    assert done.text_tokens > 60 * 256 / 2
    assert done.readings >= 1


def test_what_is_stated_is_what_held_out_text_gives(
    done: TrainingResult, loaded: LoadedModel, files: SubjectFiles
) -> None:
    """In a loop over the held-out texts, in float64."""
    sae = load_sae(done.path)
    split = source(loaded, files).split
    rows = [
        read_site(loaded.model, Site.parse(SITE), torch.tensor([loaded.tokenizer(text)["input_ids"][:128]]))
        for text in split.held_out_documents()
    ]
    x = torch.cat([row[0, 1:] for row in rows])
    f = sae.encode(x)
    error = (x - sae.decode(f, x)).double().square().sum()
    fvu = error / (x.double() - x.double().mean(0)).square().sum()
    assert done.measured.tokens == len(x)
    assert done.measured.fvu == pytest.approx(fvu.item(), rel=1e-4)
    assert done.measured.l0 == pytest.approx((f > 0).sum().item() / len(x), rel=1e-4)
    assert done.measured.dead == pytest.approx(1 - (f > 0).any(0).double().mean().item())
    assert done.measured.fvu < 0.5


def test_sae_lens_loads_it_with_its_metadata(done: TrainingResult) -> None:
    theirs, ours = SAE.load_from_disk(str(done.path)), load_sae(done.path)
    x = 3 * torch.randn(50, ours.width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs.encode(x), ours.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(theirs(x), ours.decode(ours.encode(x), x), rtol=1e-5, atol=1e-5)
    metadata = theirs.cfg.metadata
    assert (metadata.hook_name, metadata.hf_hook_name) == ("blocks.1.hook_resid_post", "transformer.h.1")
    assert (metadata.prepend_bos, metadata.context_size) == (False, 128)
    assert metadata.exclude_special_tokens == [256]


def test_the_server_accepts_it_on_its_sample(done: TrainingResult, loaded: LoadedModel) -> None:
    placed = read_sae(SAESource(path=str(done.path)), widths_of(loaded.model))
    assert str(placed.loaded.site) == SITE
    assert placed.sample is not None
    assert 1 <= len(loaded.tokenizer(placed.sample)["input_ids"]) <= SAMPLE_TOKENS
    checked = check_sae(
        placed,
        loaded.tokenizer.encode,
        lambda tokens, site: read_site(loaded.model, site, torch.tensor([list(tokens)]))[0],
        lambda *_: pytest.fail("no other site is asked for"),
        loaded.max_context,
    )
    assert checked.measured is not None
    assert checked.measured.fvu == pytest.approx(done.measured.fvu, abs=0.1)


def test_a_run_that_was_broken_off_goes_on(
    done: TrainingResult,
    loaded: LoadedModel,
    files: SubjectFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C during training, then the same again: the same weights as of the unbroken run."""
    given = activation_batches

    def interrupted(*args: Any, **options: Any) -> Iterator[Tensor]:
        for number, x in enumerate(given(*args, **options)):
            if number == 45:
                raise KeyboardInterrupt
            yield x

    monkeypatch.setattr(run_module, "activation_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(source(loaded, files), SETTINGS, tmp_path, NOWHERE)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FOLDER]
    monkeypatch.undo()
    elsewhere = replace(source(loaded, files), site=Site.parse("layers.0.resid_post"))
    with pytest.raises(CheckpointError, match=r"site=layers\.1\.resid_post, not layers\.0\.resid_post"):
        run(elsewhere, SETTINGS, tmp_path, NOWHERE)
    resumed = run(source(loaded, files), SETTINGS, tmp_path, NOWHERE)
    assert resumed.measured == done.measured
    weights = [path / "sae_weights.safetensors" for path in (tmp_path, done.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_input_of_a_layer_is_named_as_the_output_of_the_one_before(
    loaded: LoadedModel, files: SubjectFiles, tmp_path: Path
) -> None:
    short = replace(SETTINGS, steps=8)
    for name, module in (("layers.1.resid_pre", "transformer.h.0"), ("layers.0.resid_pre", None)):
        out = tmp_path / name
        run(replace(source(loaded, files), site=Site.parse(name)), short, out, NOWHERE)
        told = json.loads((out / "cfg.json").read_text())["metadata"]
        assert told.get("hf_hook_name") == module
        assert told["hook_name"] == f"blocks.{name[7]}.hook_resid_pre"


def test_a_site_that_is_not_there_is_an_error(
    loaded: LoadedModel, files: SubjectFiles, tmp_path: Path
) -> None:
    elsewhere = replace(source(loaded, files), site=Site.parse("layers.9.resid_post"))
    with pytest.raises(SiteError, match="the model has layers 0 to 2"):
        run(elsewhere, SETTINGS, tmp_path, NOWHERE)


def test_too_little_text_is_an_error(loaded: LoadedModel, files: SubjectFiles, tmp_path: Path) -> None:
    """Nothing held out; nothing to train on but texts of one token, over which a run must not hang."""
    few = tmp_path / "few.txt"
    few.write_text("a\n\nb\n\nc", encoding="utf-8")
    made = source(loaded, files)
    with pytest.raises(ValueError, match="the held-out texts have fewer than two tokens"):
        run(replace(made, split=TextSplit([few])), SETTINGS, tmp_path / "out", NOWHERE)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(paragraphs(3)), encoding="utf-8")
    with pytest.raises(TextError, match=r"few\.txt: no text is left to train on"):
        run(replace(made, split=TextSplit([few], held_out_file=other)), SETTINGS, tmp_path / "out", NOWHERE)
