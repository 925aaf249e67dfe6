"""Loading: what a directory must hold, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from saegis_server.cli.options import DtypeName
from saegis_server.engine.torch.loading import DTYPES, ModelLoadError, load_model
from tests.engine import tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a tiny model and its tokenizer."""
    where = tmp_path / "tiny-llama"
    tiny.model().save_pretrained(where)
    tiny.tokenizer().save_pretrained(where)
    return where


def test_what_was_saved_is_loaded(saved: Path) -> None:
    loaded = load_model(str(saved))
    original = tiny.model().state_dict()
    assert loaded.name == "tiny-llama"
    assert loaded.max_context == 256
    assert loaded.eos_token_ids == (tiny.EOS,)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("né")) == "né"


def test_the_digest_is_that_of_the_weights(saved: Path) -> None:
    first = load_model(str(saved)).digest
    assert load_model(str(saved)).digest == first
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    assert load_model(str(saved)).digest != first


def test_the_dtypes_that_the_command_line_offers_are_those_that_there_are() -> None:
    assert set(DtypeName) == {"auto", *DTYPES}


def test_every_end_token_is_taken(saved: Path) -> None:
    settings = saved / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": [258, 5]}))
    assert load_model(str(saved)).eos_token_ids == (5, tiny.EOS, 258)


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_the_dtype_is_the_one_asked_for(saved: Path, name: str, dtype: torch.dtype) -> None:
    assert load_model(str(saved), dtype=name).model.dtype == dtype


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ModelLoadError, match="'float8' is not one of auto, float32"):
        load_model(str(saved), dtype="float8")


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="nowhere"):
        load_model(str(tmp_path / "nowhere"))


def test_pickled_weights_are_refused(saved: Path) -> None:
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_model(str(saved))


def test_a_tokenizer_that_is_missing_is_refused(saved: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (saved / name).unlink()
    with pytest.raises(ModelLoadError, match=str(saved)):
        load_model(str(saved))


def test_weights_that_are_missing_are_not_made_up(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelLoadError, match=r"1 weights are missing.*model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model(str(saved))


def test_weights_of_another_shape_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelLoadError, match=str(saved)):
        load_model(str(saved))


def test_a_file_that_is_cut_short_is_refused(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=str(saved)):
        load_model(str(saved))
