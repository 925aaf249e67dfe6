"""Writing an SAE and reading it again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.sae.autoencoder import Architecture
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.layout import SAMPLE_FILE
from saegis_server.steering.rows import Norm
from tests.sae.sae_cases import random_sae


@settings(max_examples=40, deadline=None)
@given(
    architecture=st.sampled_from(Architecture),
    norm=st.sampled_from(Norm),
    apply_b_dec=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_what_is_written_is_read_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    architecture: Architecture,
    norm: Norm,
    apply_b_dec: bool,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("sae")
    sae = random_sae(architecture, seed, norm=norm, apply_b_dec_to_input=apply_b_dec)
    sae = replace(
        sae, stated_fvu=0.125, stated_l0=17.5, metadata={"dataset_path": "wörter", "context_size": 64}
    )
    save_sae(sae, path)
    again = load_sae(path)
    for name, tensor in sae.tensors().items():
        assert tensor.numpy().tobytes() == again.tensors()[name].numpy().tobytes()
    for field in ("architecture", "norm", "apply_b_dec_to_input", "hook_name", "model_name"):
        assert getattr(again, field) == getattr(sae, field)
    assert (again.stated_fvu, again.stated_l0) == (0.125, 17.5)
    assert again.metadata["dataset_path"] == "wörter"
    save_sae(again, path / "again")
    assert load_sae(path / "again").digest == again.digest


def test_a_folded_factor_is_not_folded_twice(tmp_path: Path) -> None:
    save_sae(random_sae(), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["normalize_activations"] = "expected_average_only_in"
    config["metadata"]["norm_scaling_factor"] = 0.25
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    folded = load_sae(tmp_path)
    save_sae(folded, tmp_path / "again")
    again = load_sae(tmp_path / "again")
    assert again.W_enc.numpy().tobytes() == folded.W_enc.numpy().tobytes()
    assert "norm_scaling_factor" not in again.metadata


def test_metadata_that_json_cannot_hold_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_sae(replace(random_sae(), metadata={"path": tmp_path}), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_sample_lies_where_the_server_looks_for_it(tmp_path: Path) -> None:
    save_sae(random_sae(), tmp_path)
    assert not (tmp_path / SAMPLE_FILE).exists()
    save_sae(random_sae(), tmp_path, "über\nden Fluss")
    assert (tmp_path / SAMPLE_FILE).read_text(encoding="utf-8") == "über\nden Fluss"
