"""The pipeline on a tiny recipe, from the corpus to the manifest, by its command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from saegis_server.polyglot.activations import block, edited, residual
from saegis_server.polyglot.corpus import Corpus
from saegis_server.polyglot.language_model import Training, held_out_loss, train_language_model
from saegis_server.polyglot.pipeline import Recipe, load_reference, make_model, ship
from saegis_server.polyglot.shipped import Manifest, digests


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("polyglot")
    command = [sys.executable, "-m", "saegis_server.polyglot", "all", "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_step_leaves_its_files(made: Path) -> None:
    told = Manifest.load(made / "manifest.json")
    assert told.files == digests(made)
    assert {"model/model.safetensors", "model/tokenizer.json", "sae/sae_weights.safetensors"} <= set(
        told.files
    )
    first = json.loads((made / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])
    document = Corpus(0).document(0)
    assert "".join(segment["text"] for segment in first["segments"]) == document.text
    labels = (made / "sae" / "features.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(labels) == told.features == Recipe.quick().sae.features


def test_a_run_ships_whole(made: Path, tmp_path: Path) -> None:
    ship(made, tmp_path)
    assert digests(tmp_path) == Manifest.load(tmp_path / "manifest.json").files


def test_a_step_without_the_one_before_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the step `tokenizer` first"):
        make_model(tmp_path, Recipe.quick())


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(made: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(made / "model"))
    shape = Recipe.quick().shape
    settings = Training(steps=30, batch_tokens=1024, pool=64, warmup=2, checkpoint_every=10)
    whole = train_language_model(tokenizer, Corpus(0), shape, settings, tmp_path / "whole")
    assert held_out_loss(whole, tokenizer, Corpus(1), 1) < 6.0
    checkpoint = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 30
    again = train_language_model(tokenizer, Corpus(0), shape, settings, tmp_path / "whole")
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    other = Training(steps=30, batch_tokens=1024, pool=64, warmup=3, checkpoint_every=10)
    with pytest.raises(ValueError, match="belongs to a run with other settings"):
        train_language_model(tokenizer, Corpus(0), shape, other, tmp_path / "whole")


def test_a_resumed_run_equals_an_unbroken_one(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(made / "model"))
    shape = Recipe.quick().shape
    settings = Training(steps=4, batch_tokens=512, pool=32, warmup=1, checkpoint_every=2)
    whole = train_language_model(tokenizer, Corpus(0), shape, settings, tmp_path / "whole")
    import saegis_server.polyglot.language_model as module

    write = module._checkpoint

    def write_and_break(folder: Path, *rest: object) -> None:
        write(folder, *rest)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_checkpoint", write_and_break)
        with pytest.raises(KeyboardInterrupt):
            train_language_model(tokenizer, Corpus(0), shape, settings, tmp_path / "broken")
    resumed = train_language_model(tokenizer, Corpus(0), shape, settings, tmp_path / "broken")
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_residual_is_what_transformers_reports_and_an_edit_reaches_the_output(made: Path) -> None:
    reference = load_reference(made / "model", made / "sae", 0)
    ids = torch.tensor([[1, 40, 41, 42]])
    states = reference.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(residual(reference.model, 0, ids), states[1])
    plain = reference.model(input_ids=ids).logits
    with edited(reference.model, 0, lambda x: x):
        assert torch.equal(reference.model(input_ids=ids).logits, plain)
    with edited(reference.model, 0, lambda x: x + 1.0):
        assert not torch.allclose(reference.model(input_ids=ids).logits, plain)
    assert torch.equal(reference.model(input_ids=ids).logits, plain)
    with pytest.raises(IndexError, match="layer 9"):
        block(reference.model, 9)
