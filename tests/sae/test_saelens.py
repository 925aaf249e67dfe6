"""Reading SAELens's layout: what is honoured, and each refusal with its file and its reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.sae.layout import Release
from saegis_server.sae.left_out import excluded_tokens, left_out, special_tokens
from saegis_server.steering.rows import Norm
from tests.engine import tiny
from tests.polyglot.oracle import get_special_token_ids
from tests.sae.sae_cases import FEATURES, WIDTH, random_activations, random_sae


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sound JumpReLU SAE."""
    save_sae(random_sae(Architecture.JUMPRELU), tmp_path / "layer_1")
    return tmp_path / "layer_1"


def _edit_config(folder: Path, **fields: object) -> None:
    path = folder / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _edit_metadata(folder: Path, **fields: object) -> None:
    _edit_config(folder, metadata=json.loads((folder / "cfg.json").read_text())["metadata"] | fields)


def _edit_tensors(folder: Path, **tensors: Tensor | None) -> None:
    path = folder / "sae_weights.safetensors"
    changed = load_file(path) | tensors
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)


def _refusal(folder: Path) -> SAEFileError:
    with pytest.raises(SAEFileError) as caught:
        load_sae(folder)
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    return caught.value


def test_fields_are_read_as_written(folder: Path) -> None:
    _edit_metadata(folder, fvu=0.07, l0=31, hf_hook_name="model.layers.1", neuronpedia_id=None)
    sae = load_sae(folder)
    assert (sae.architecture, sae.norm, sae.apply_b_dec_to_input) == (Architecture.JUMPRELU, Norm.NONE, True)
    assert (sae.hook_name, sae.model_name, sae.name) == ("blocks.1.hook_resid_post", "random", "layer_1")
    assert (sae.stated_fvu, sae.stated_l0) == (0.07, 31.0)
    assert sae.metadata["hf_hook_name"] == "model.layers.1"
    assert load_sae(folder, name="house").name == "house"


def test_the_tokens_that_it_was_not_trained_on(folder: Path) -> None:
    """As SAELens writes them: true means the structural special tokens, those of chats are not among them."""
    special = frozenset({256, 257})
    tokens = [256, 7, 256, 5, 257]
    for stated, excluded, wanted in (
        (None, frozenset(), [True, False, False, False, False]),
        (False, frozenset(), [True, False, False, False, False]),
        ([5, 9], frozenset({5, 9}), [True, False, False, True, False]),
        (True, special, [True, False, True, False, True]),
    ):
        _edit_metadata(folder, exclude_special_tokens=stated)
        sae = load_sae(folder)
        assert excluded_tokens(sae, special) == excluded
        assert left_out(tokens, sae, special, first=1).tolist() == wanted
    for bad in ("all", [1, "x"], [True], [-1], 3):
        _edit_metadata(folder, exclude_special_tokens=bad)
        assert "exclude_special_tokens" in _refusal(folder).reason
    named = special_tokens(tiny.tokenizer())
    assert named == frozenset(get_special_token_ids(tiny.tokenizer()))
    assert len(named) == 2


def test_digest_covers_weights_and_configuration(folder: Path) -> None:
    first = load_sae(folder).digest
    assert load_sae(folder).digest == first
    assert len(first) == 64
    _edit_config(folder, apply_b_dec_to_input=False)
    second = load_sae(folder).digest
    _edit_tensors(folder, b_dec=torch.zeros(WIDTH))
    assert len({first, second, load_sae(folder).digest}) == 3


def test_tensors_do_not_hang_on_the_file(folder: Path) -> None:
    sae = load_sae(folder)
    before = sae.encode(random_activations(4)).clone()
    weights = folder / "sae_weights.safetensors"
    with weights.open("r+b") as file:
        file.truncate(100)
    torch.testing.assert_close(sae.encode(random_activations(4)), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("value", ["expected_average_only_in", True])
def test_average_norm_is_folded(folder: Path, value: object) -> None:
    plain = load_sae(folder)
    _edit_config(folder, normalize_activations=value, norm_scaling_factor=0.25)
    folded = load_sae(folder)
    assert folded.norm is Norm.NONE
    x = random_activations(16)
    f = plain.encode(0.25 * x)
    torch.testing.assert_close(folded.encode(x), f, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.decode(f, x), plain.decode(f, x) / 0.25, rtol=1e-5, atol=1e-5)


def test_average_norm_without_its_factor_is_refused(folder: Path) -> None:
    _edit_config(folder, normalize_activations="expected_average_only_in")
    error = _refusal(folder)
    assert error.path == folder / "cfg.json"
    assert "norm_scaling_factor is not stated" in error.reason
    given = load_sae(folder, release=Release(0.25))
    _edit_config(folder, norm_scaling_factor=0.25)
    assert torch.equal(given.W_enc, load_sae(folder).W_enc)
    with pytest.raises(SAEFileError, match=r"norm_scaling_factor is -1\.0, not a positive finite number"):
        load_sae(folder, release=Release(-1.0))


@pytest.mark.parametrize("factor", [0, -1.0, "0.5", True, 1e40])
def test_an_absurd_factor_is_refused(folder: Path, factor: object) -> None:
    _edit_config(folder, normalize_activations="expected_average_only_in", norm_scaling_factor=factor)
    assert "norm_scaling_factor is" in _refusal(folder).reason


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "topk"}, "k is None, not a positive whole number"),
        ({"activation_fn": "tanh-relu"}, "activation_fn is 'tanh-relu'; only relu"),
        ({"architecture": "transcoder"}, "a transcoder states hook_name and hook_name_out"),
        (
            {"architecture": "transcoder", "normalize_activations": "layer_norm"},
            "a transcoder that normalises is not known",
        ),
        (
            {"architecture": "transcoder", "model_from_pretrained_kwargs": {"fold_ln": True}},
            "fold_ln is true",
        ),
        (
            {"architecture": "jumprelu_skip_transcoder", "hook_name_out": "blocks.1.hook_mlp_out"},
            "a skip transcoder needs W_skip",
        ),
        ({"architecture": "temporal"}, "encodes a token from the tokens before it"),
        ({"architecture": "matching_pursuit"}, "by an iteration over all features"),
        ({"architecture": "shiny"}, "'shiny' is not known; Saegis reads standard, gated, jumprelu"),
        ({"architecture": 3}, "architecture is 3, not a string"),
        ({"normalize_activations": "covariance_whitening"}, "the whitening is not folded"),
        ({"normalize_activations": "softmax"}, "normalize_activations is 'softmax'; known are none"),
        ({"reshape_activations": "hook_z"}, "hook_name is .*, no attention heads' outputs"),
        ({"reshape_activations": "fold"}, "reshape_activations is 'fold'"),
        ({"hook_point_head_index": 3}, "hook_head_index: the SAE reads a single attention head"),
        (
            {"hook_name_out": "blocks.2.hook_mlp_out"},
            "hook_name_out is 'blocks.2.hook_mlp_out', another site than hook_name, but the architecture is",
        ),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1, not true or false"),
        ({"d_in": "10"}, "d_in is '10', not a positive whole number"),
        ({"d_sae": None}, "d_sae is None, not a positive whole number"),
        ({"d_in": WIDTH + 1}, r"d_in is 11, but the tensors of sae_weights.safetensors say 10"),
        ({"d_sae": 10**30}, r"d_sae is 1000.*, but the tensors of sae_weights.safetensors say 24"),
        ({"metadata": []}, "metadata is not an object"),
        ({"metadata": {"fvu": float("nan")}}, "fvu is nan, not a finite number of at least 0"),
        ({"metadata": {"l0": 10**400}}, "l0 is 1000.*, not a finite number"),
        (
            {
                "metadata": {
                    "hook_name": "blocks.1.attn.hook_z",
                    "model_from_pretrained_kwargs": {"fold_value_biases": True},
                }
            },
            "without their value biases",
        ),
        ({"metadata": {"hook_name": "a\x07"}}, "characters that cannot be printed"),
        ({"metadata": {"hook_name": "a\ud800"}}, "half of a character"),
    ],
)
def test_configurations_that_cannot_be_honoured(
    folder: Path, fields: dict[str, object], message: str
) -> None:
    _edit_config(folder, **fields)
    error = _refusal(folder)
    assert error.path == folder / "cfg.json"
    with pytest.raises(SAEFileError, match=message):
        raise error


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"threshold": None}, "the architecture jumprelu needs threshold, not in the file"),
        ({"W_enc": None, "b_enc": None}, "needs W_enc, b_enc, not in the file"),
        ({"r_mag": torch.zeros(FEATURES)}, "does not have: 'r_mag'"),
        ({"log_threshold": torch.zeros(FEATURES)}, "both threshold and log_threshold"),
        ({"W_enc": torch.zeros(FEATURES, WIDTH)}, r"W_enc has the shape \[24, 10\].*it is transposed"),
        ({"b_enc": torch.full((FEATURES,), torch.inf)}, "b_enc holds numbers that are not finite"),
        (
            {"b_enc": torch.full((FEATURES,), 1e300, dtype=torch.float64)},
            "b_enc holds numbers that are not finite",
        ),
        ({"b_enc": torch.zeros(FEATURES, dtype=torch.int64)}, "b_enc is of type int64, not a float"),
        ({"W_enc": torch.zeros(WIDTH, FEATURES).to(torch.float8_e4m3fn)}, "W_enc is of type float8"),
        ({"scaling_factor": torch.full((FEATURES,), 1.5)}, "scaling_factor is not one everywhere"),
        ({"b_dec": torch.zeros(0), "W_enc": torch.zeros(0, FEATURES)}, r"W_enc has the shape \[0, 24\]"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, tensors: dict[str, Tensor | None], message: str) -> None:
    _edit_tensors(folder, **tensors)
    error = _refusal(folder)
    assert error.path == folder / "sae_weights.safetensors"
    with pytest.raises(SAEFileError, match=message):
        raise error


def test_a_scaling_factor_of_ones_is_dropped(folder: Path) -> None:
    plain = load_sae(folder)
    _edit_tensors(folder, scaling_factor=torch.ones(FEATURES))
    assert torch.equal(load_sae(folder).W_dec, plain.W_dec)


def test_what_the_system_does_not_give_is_a_file_error(folder: Path) -> None:
    config = folder / "cfg.json"
    config.unlink()
    config.mkdir()
    assert "cannot be read" in _refusal(folder).reason
    assert "cannot be read" in _refusal(folder / ("a" * 5000)).reason


def test_absent_and_broken_files(folder: Path, tmp_path: Path) -> None:
    assert "not a directory" in _refusal(tmp_path / "nowhere").reason
    weights, config = folder / "sae_weights.safetensors", folder / "cfg.json"
    sound = weights.read_bytes()
    for broken in (b"", sound[:7], sound[:200], sound[:-1], b"\x80\x04}q\x00.", sound + b"\0" * 9):
        weights.write_bytes(broken)
        error = _refusal(folder)
        assert error.path == weights
        assert "not a whole safetensors file" in error.reason
    weights.unlink()
    assert "the file does not exist" in _refusal(folder).reason
    for text, reason in ((b"{", "not JSON"), (b"[]", "not a JSON object"), (b"\xff{", "cannot be read")):
        config.write_bytes(text)
        error = _refusal(folder)
        assert error.path == config
        assert reason in error.reason
    config.unlink()
    assert "the file does not exist" in _refusal(folder).reason
