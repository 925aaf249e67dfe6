"""The file of examples: what is saved is loaded, and what does not fit the SAE or the model is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.examples import EXAMPLES_FILE, Examples, Histogram, Piece
from tests.rpc import tiny

SAE = tiny.sae("first", 1)
VOCABULARY = tiny.VOCABULARY


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert Examples.load(tmp_path, SAE, VOCABULARY) is None
    tiny.examples(SAE).save(tmp_path)
    loaded = Examples.load(tmp_path, SAE, VOCABULARY)
    assert loaded is not None
    assert loaded.pieces(3) == (
        Piece((5, 6, 5, 7), (0.0, 2.5, 2.5, 1.0)),
        Piece((8, VOCABULARY - 1), (0.5, 0.0)),
    )
    assert [piece.strongest for piece in loaded.pieces(3)] == [1, 0]
    assert loaded.histogram(3) == Histogram(0.5, (1, 0, 1, 0, 0, 2, 0, 0), 1000)
    assert (loaded.pieces(4), loaded.histogram(4).width) == ((), 0.0)


def test_a_file_of_another_sae_or_model_is_refused(tmp_path: Path) -> None:
    tiny.examples(SAE).save(tmp_path)
    with pytest.raises(SAEFileError, match="the model has 8"):
        Examples.load(tmp_path, SAE, 8)
    with pytest.raises(SAEFileError, match="gathered from another SAE"):
        Examples.load(tmp_path, tiny.sae("first", 2), VOCABULARY)
    made = tiny.examples(SAE)
    cut = {name: getattr(made, name)[:5] for name in ("tokens", "activations", "counts", "bin_width")}
    replace(made, **cut).save(tmp_path)
    with pytest.raises(SAEFileError, match="of 5 features, the SAE has"):
        Examples.load(tmp_path, SAE, VOCABULARY)


def test_a_file_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = tmp_path / EXAMPLES_FILE
    path.write_bytes(b"no safetensors")
    with pytest.raises(SAEFileError, match="not a whole safetensors file"):
        Examples.load(tmp_path, SAE, VOCABULARY)
    save_file({"tokens": torch.zeros(1)}, path)
    with pytest.raises(SAEFileError, match="has no tensor activations"):
        Examples.load(tmp_path, SAE, VOCABULARY)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tokens", torch.zeros(SAE.features, 2, 4), "tokens is torch.float32"),
        ("tokens", torch.zeros(SAE.features, 2, 5, dtype=torch.int32), "tokens and activations have the"),
        ("activations", torch.full((SAE.features, 2, 4), float("nan")), "activations holds"),
        ("bin_width", torch.full((SAE.features,), -1.0), "bin_width holds"),
        ("counts", torch.full((SAE.features, 8), -1), "counts holds negative"),
        ("counts", torch.zeros(SAE.features, 999, dtype=torch.int64), "999 bins are more than"),
        ("counts", torch.zeros(SAE.features, dtype=torch.int64), "counts has the shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named(field: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny.examples(SAE), **{field: value})  # type: ignore[arg-type]
