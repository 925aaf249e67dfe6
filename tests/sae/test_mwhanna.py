"""Transcoders of mwhanna's layout, a file for each layer, against their forward pass in float64."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from saegis_server.sae.convert import read_any
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import check_sae, load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.origin import stated_site
from saegis_server.steering.site import Site
from tests.sae.layouts import Weights

CONFIG = """
model_name: "Qwen/Qwen3-4B"
model_kind: "transcoder_set"
feature_input_hook: "mlp.hook_in"
feature_output_hook: "hook_mlp_out"
scan: {}
"""


def tensors() -> dict[str, Tensor]:
    """Random ones, as they lie in a file."""
    w = Weights(1)
    return {
        "W_enc": w.normal(w.m, w.d),
        "W_dec": w.normal(w.m, w.d),
        "b_enc": w.normal(w.m),
        "b_dec": w.normal(w.d),
    }


def written(
    folder: Path, found: Mapping[str, Tensor], config: str | None = CONFIG, name: str = "layer_7.safetensors"
) -> Path:
    """The file in its folder."""
    folder.mkdir(exist_ok=True)
    save_file(dict(found), folder / name)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder / name


def test_a_transcoder_tells_what_its_equation_says_and_is_converted(tmp_path: Path) -> None:
    found = tensors()
    path = written(tmp_path / "some", found)
    sae = read_any(str(path))
    assert (stated_site(sae), sae.model_name) == (Site.parse("layers.7.mlp_in_to_out"), "Qwen/Qwen3-4B")
    save_sae(sae, tmp_path / "out")
    again = load_sae(tmp_path / "out")
    assert (stated_site(again), again.model_name) == (stated_site(sae), sae.model_name)
    x, t = torch.randn(9, sae.width), {name: tensor.double() for name, tensor in found.items()}
    f = (x.double() @ t["W_enc"].T + t["b_enc"]).relu()
    for each in (sae, again):
        torch.testing.assert_close(each.encode(x).double(), f, atol=1e-5, rtol=1e-5)
        told = each.decode(each.encode(x), x).double()
        torch.testing.assert_close(told, f @ t["W_dec"] + t["b_dec"], atol=1e-5, rtol=1e-5)


def test_without_a_description_the_folder_names_the_model(tmp_path: Path) -> None:
    path = written(tmp_path / "qwen3-14b-transcoders-lowl0", tensors(), None)
    assert read_any(str(path)).model_name == "Qwen/Qwen3-14B"


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        (
            CONFIG.replace("mlp.hook_in", "ln2.hook_normalized"),
            "layer_7.safetensors",
            "feature_input_hook is 'ln2",
        ),
        (
            CONFIG.replace('"hook_mlp_out"', "[1, 2]"),
            "layer_7.safetensors",
            "feature_output_hook is not a string",
        ),
        ("[", "layer_7.safetensors", "cannot be read"),
        ("3", "layer_7.safetensors", "not a mapping"),
        (CONFIG, "seven.safetensors", "its layout is not known"),
    ],
)
def test_what_is_stated_and_not_honoured_is_refused(
    config: str, name: str, reason: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "some", tensors(), config, name)
    with pytest.raises(SAEFileError, match=reason):
        read_any(str(path))


def test_tensors_that_do_not_fit_are_refused_and_a_server_names_the_command(tmp_path: Path) -> None:
    found = tensors()
    turned = {**found, "W_enc": found["W_enc"].T.contiguous()}
    less = {name: tensor for name, tensor in found.items() if name != "b_dec"}
    for broken, reason in (
        (turned, "transposed"),
        (less, "needs b_dec"),
        ({**found, "W_skip": torch.eye(2)}, "W_skip"),
    ):
        with pytest.raises(SAEFileError, match=reason):
            read_any(str(written(tmp_path / "some", broken)))
    for spec in (
        str(tmp_path / "some" / "layer_7.safetensors"),
        "mwhanna/qwen3-4b-transcoders/layer_7.safetensors",
    ):
        with pytest.raises(SAEFileError, match="convert it with: saegis sae convert"):
            check_sae(spec)
