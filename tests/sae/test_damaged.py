"""Damaged and misfit files of every layout: all are refused by file and reason, and none runs anything."""

import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saegis_server.policy.errors import Unmatched
from saegis_server.rpc.server.config import SAESource
from saegis_server.rpc.server.sae_sources import check_origin, read_sae
from saegis_server.sae import unpickle
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.convert import read_any, read_pickle, read_plain
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import check_sae, load_sae, resolve_sae
from saegis_server.sae.formats.saelens import save_sae
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Widths
from tests.sae.layouts import PICKLERS, WRITERS, Written
from tests.sae.sae_cases import random_sae

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


class Payload:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return Path.touch, (self.trace,)


def saelens(folder: Path, seed: int) -> Written:
    """SAELens's own layout, which the tests of it have at length."""
    save_sae(random_sae(Architecture.JUMPRELU, seed), folder)
    return Written(folder, lambda x: (x, x), None, None)


FOLDERS = {"SAELens": saelens, **WRITERS}


def weights_of(folder: Path) -> Path:
    """The file of the weights."""
    return next(path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".npz"))


def description_of(folder: Path) -> Path:
    """The file that describes an SAE."""
    return next(iter(sorted(folder.glob("*.json"))))


def tensors_of(weights: Path) -> dict[str, Tensor]:
    """The tensors of a file of either kind."""
    if weights.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
    return load_file(weights)


def write(weights: Path, tensors: dict[str, Tensor]) -> None:
    """Write them as they were."""
    if weights.suffix == ".npz":
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(weights, **arrays)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights)


def change(weights: Path, **changed: Callable[[Tensor], Tensor | None]) -> None:
    """Change the first matrix, or the first bias of a file."""
    tensors = tensors_of(weights)
    for kind, new in changed.items():
        ndim = 2 if kind == "matrix" else 1
        name = min(name for name, tensor in tensors.items() if tensor.ndim == ndim)
        made = new(tensors.pop(name))
        if made is not None:
            tensors[name] = made
    write(weights, tensors)


def describe(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the description."""
    path = description_of(folder)
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))


def rewrite(folder: Path, content: bytes) -> None:
    """Put bytes in the place of the description."""
    path = description_of(folder)
    path.write_bytes(content)


def bomb(folder: Path) -> None:
    """An archive that says that it holds a thousand times its size."""
    weights = weights_of(folder)
    with zipfile.ZipFile(weights, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", b"\0" * 10**7)


def objects(folder: Path) -> None:
    """Weights that are pickled objects, in numpy's archive or as they are."""
    weights, payload = weights_of(folder), Payload(folder / "trace")
    if weights.suffix == ".npz":
        np.savez(weights, W_enc=np.array([payload], dtype=object))
    else:
        weights.write_bytes(pickle.dumps(payload))


def blocked(folder: Path) -> None:
    """A folder where the weights were."""
    weights = weights_of(folder)
    weights.unlink()
    weights.mkdir()


def _nan(tensor: Tensor) -> Tensor:
    tensor[(0,) * tensor.ndim] = torch.nan
    return tensor


def _taken_for_another_width(described: dict[str, object]) -> None:
    for key in ("d_in", "d_model", "width"):
        if key in described:
            described[key] = 977


def _without_numbers(described: dict[str, object]) -> None:
    kept = {key: value for key, value in described.items() if isinstance(value, bool)}
    described.clear()
    described.update(kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: weights_of(folder).unlink(),
    "empty weights": lambda folder: weights_of(folder).write_bytes(b""),
    "cut weights": lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-40]),
    "hardly any weights": lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:5]),
    "noise for weights": lambda folder: weights_of(folder).write_bytes(bytes(range(256)) * 9),
    "a pointer for weights": lambda folder: weights_of(folder).write_bytes(POINTER),
    "a folder for weights": blocked,
    "a pickle for weights": objects,
    "an archive that grows": bomb,
    "a matrix left out": lambda folder: change(weights_of(folder), matrix=lambda _: None),
    "a bias left out": lambda folder: change(weights_of(folder), bias=lambda _: None),
    "a matrix that is not finite": lambda folder: change(weights_of(folder), matrix=_nan),
    "a bias that is not finite": lambda folder: change(weights_of(folder), bias=_nan),
    "a bias of whole numbers": lambda folder: change(weights_of(folder), bias=lambda t: t.to(torch.int64)),
    "a bias too long": lambda folder: change(weights_of(folder), bias=lambda t: torch.cat([t, t])),
    "a matrix cut": lambda folder: change(weights_of(folder), matrix=lambda t: t[:, :-1]),
    "a matrix turned": lambda folder: change(weights_of(folder), matrix=lambda t: torch.cat([t, t]).T),
    "a matrix with three axes": lambda folder: change(weights_of(folder), matrix=lambda t: t[None]),
    "a bias with two axes": lambda folder: change(weights_of(folder), bias=lambda t: t[None]),
    "a tensor too many": lambda folder: write(
        weights_of(folder), {**tensors_of(weights_of(folder)), "W_skip": torch.zeros(3, 3)}
    ),
    "another width stated": lambda folder: describe(folder, _taken_for_another_width),
    "no numbers stated": lambda folder: describe(folder, _without_numbers),
    "a list for a description": lambda folder: rewrite(folder, b"[]"),
    "half a description": lambda folder: rewrite(folder, b'{"d_in": 1'),
    "a field twice": lambda folder: rewrite(folder, b'{"d_in": 1, "d_in": 2}'),
    "a byte-order mark": lambda folder: rewrite(folder, b"\xef\xbb\xbf{}"),
    "UTF-16": lambda folder: rewrite(folder, "{}".encode("utf-16")),
    "Latin-1": lambda folder: rewrite(folder, b'{"model_name": "\xe9"}'),
    "a pointer for a description": lambda folder: rewrite(folder, POINTER),
    "a description of numbers": lambda folder: rewrite(folder, b"12"),
}


#: The damages of a description, which one layout does not have, and of an archive, which no other one has.
OF_A_DESCRIPTION = {name for name in DAMAGES if "state" in name or "description" in name} | {
    *("a field twice", "a byte-order mark", "UTF-16", "Latin-1"),
}
CASES = [
    (layout, damage)
    for layout in FOLDERS
    for damage in DAMAGES
    if not (damage in OF_A_DESCRIPTION if layout == "Gemma Scope" else damage == "an archive that grows")
]


def refused(folder: Path, read: Callable[[], object]) -> SAEFileError:
    """The refusal, which names something in the folder and a reason."""
    with pytest.raises(SAEFileError) as caught:
        read()
    assert str(folder.resolve()) in str(Path(caught.value.path).resolve())
    assert len(caught.value.reason) > 8
    assert not list(folder.rglob("trace")), "something was run"
    return caught.value


@pytest.mark.parametrize(("layout", "damage"), CASES)
def test_a_damaged_folder_is_refused(layout: str, damage: str, tmp_path: Path) -> None:
    folder = FOLDERS[layout](tmp_path, 5).folder
    load_sae(folder)
    DAMAGES[damage](folder)
    refused(tmp_path, lambda: load_sae(folder))


def cut(path: Path, rng: random.Random) -> None:
    """Leave off an end of any length."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path: Path, rng: random.Random) -> None:
    """Turn a bit that decides: of a text, of the description in front of tensors, or of what a sum checks."""
    content = bytearray(path.read_bytes())
    first, last = 0, len(content)
    if path.suffix == ".safetensors":
        first, last = 8, 8 + int.from_bytes(content[:8], "little")
    elif path.suffix == ".npz":
        first = content.index(b"NUMPY")
        last = content.index(b"PK", first)
    content[rng.randrange(first, last)] ^= 0x80
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spoil", [cut, flip])
@pytest.mark.parametrize("file", [weights_of, description_of])
@pytest.mark.parametrize("layout", FOLDERS)
def test_a_file_that_is_cut_or_has_a_bit_turned_is_refused(
    layout: str,
    file: Callable[[Path], Path],
    spoil: Callable[[Path, random.Random], None],
    seed: int,
    tmp_path: Path,
) -> None:
    folder = FOLDERS[layout](tmp_path, seed).folder
    spoilt = weights_of(folder) if layout == "Gemma Scope" else file(folder)
    spoil(spoilt, random.Random(f"{seed} {layout} {file.__name__}"))
    refused(folder, lambda: load_sae(folder))


PICKLE_DAMAGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a matrix left out": lambda state: state.pop(_first(state, 2)),
    "a bias left out": lambda state: state.pop(_first(state, 1)),
    "a matrix that is not finite": lambda state: _nan(state[_first(state, 2)]),
    "a bias that is not finite": lambda state: _nan(state[_first(state, 1)]),
    "a bias too long": lambda state: state.update({_first(state, 1): torch.zeros(977)}),
    "a matrix with three axes": lambda state: state.update({_first(state, 2): torch.zeros(2, 2, 2)}),
    "a number for a matrix": lambda state: state.update({_first(state, 2): torch.tensor(1.0)}),
    "a tensor too many": lambda state: state.update(W_skip=torch.zeros(3, 3)),
    "no tensors": lambda state: state.clear(),
}


def _first(state: dict[str, Tensor], ndim: int) -> str:
    """The first tensor with so many dimensions that a forward pass needs."""
    names = (name for name, value in state.items() if isinstance(value, Tensor) and value.ndim == ndim)
    return sorted(name for name in names if "stats" not in name and "group" not in name)[0]


@pytest.mark.parametrize("damage", PICKLE_DAMAGES)
@pytest.mark.parametrize("layout", PICKLERS)
def test_a_damaged_pickle_is_refused(layout: str, damage: str, tmp_path: Path) -> None:
    path = PICKLERS[layout](tmp_path, 5).folder
    state = torch.load(path, weights_only=True)
    PICKLE_DAMAGES[damage](state)
    torch.save(state, path)
    plain = tmp_path / "plain.safetensors"
    unpickle.main(str(path), str(plain))
    refused(tmp_path, lambda: read_plain(path, plain))


def _payload(path: Path) -> None:
    torch.save({"W_enc": Payload(path.parent / "trace")}, path)


def _growing(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_payload, "torch does not unpickle it with weights_only"),
        (lambda path: path.write_bytes(pickle.dumps(Payload(path.parent / "trace"))), "weights_only"),
        (lambda path: path.write_bytes(POINTER), "pointer of Git LFS"),
        (_growing, "would grow to 10000000 bytes"),
    ],
)
def test_a_pickle_runs_nothing(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    """The first two go to the process that `saegis sae convert` uses."""
    path = tmp_path / "layer3.sae.pt"
    make(path)
    assert reason in refused(tmp_path, lambda: read_pickle(path)).reason
    for spec in (str(tmp_path), str(path)):
        for read in (check_sae, lambda name: load_sae(resolve_sae(name).folder)):
            assert "convert it with: saegis sae convert" in refused(tmp_path, partial(read, spec)).reason


def test_a_sound_pickle_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    written = PICKLERS["OpenAI"](tmp_path, 2)
    sae = read_any(str(written.folder))
    x = torch.randn(4, sae.width)
    torch.testing.assert_close(sae.encode(x).double(), written.forward(x.double())[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"activation": "groupmax", "k": 23}, "features make no 23 groups of equal length"),
        ({"activation": "relu"}, "known are topk and groupmax"),
        ({"transcode": True}, "reads at one site and writes at another"),
        ({"skip_connection": True}, "skip_connection is true"),
        ({"signed": True}, "may be negative"),
        ({"k": 0}, "k is 0, not a positive whole number"),
        ({"k": 977}, "k is 977"),
        ({"k": None}, "k is None"),
    ],
)
def test_what_sparsify_states_and_is_not_read(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    folder = WRITERS["sparsify"](tmp_path, 5).folder
    describe(folder, lambda described: described.update(config))
    assert reason in refused(tmp_path, lambda: load_sae(folder)).reason


@pytest.mark.parametrize(
    ("layout", "config", "reason"),
    [
        ("Gemma Scope 2", {"architecture": "topk"}, "architecture is 'topk'"),
        ("Gemma Scope 2", {"type": "transcoder", "hf_hook_point_out": None}, "type is 'transcoder', but it"),
        ("Gemma Scope 2", {"type": "clt"}, "type is 'clt': known are"),
        ("Gemma Scope 2", {"hf_hook_point_out": "model.layers.9.output"}, "written at model.layers.9"),
        ("Gemma Scope 2", {"affine_connection": True}, "affine_connection"),
        ("Gemma Scope 2", {"width": 3}, "width is 3, but the tensors"),
        ("Gemma Scope 2", {"width": "wide"}, "width is 'wide'"),
        ("Llama Scope", {"act_fn": "topk"}, "act_fn is 'topk'"),
        ("Llama Scope", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("Llama Scope", {"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias"),
        ("Llama Scope", {"use_decoder_bias": False}, "use_decoder_bias"),
        ("Llama Scope", {"norm_activation": "token-wise"}, "norm_activation is 'token-wise'"),
        ("Llama Scope", {"hook_point_out": "blocks.4.hook_mlp_out"}, "a transcoder reads at one site"),
        ("Llama Scope", {"jump_relu_threshold": None}, "jump_relu_threshold is not stated"),
        ("Llama Scope", {"jump_relu_threshold": -1.0}, "jump_relu_threshold is -1.0"),
        ("Llama Scope", {"dataset_average_activation_norm": {"in": 1.0}}, "mean norm of 'out'"),
        ("Llama Scope", {"dataset_average_activation_norm": 3}, "is not an object"),
        ("Llama Scope", {"dataset_average_activation_norm": {"in": 0, "out": 1}}, "in is 0"),
        ("Llama Scope", {"d_model": 977}, "d_model is 977"),
        ("Llama-Scope-R1-Distill", {"act_fn": "relu"}, "act_fn is 'relu'"),
        ("Llama-Scope-R1-Distill", {"hook_point_in": "x", "hook_point_out": "x"}, "mean norm of 'x'"),
        (
            "Llama-Scope-R1-Distill",
            {"hook_point_in": "\x07", "hook_point_out": "\x07"},
            "cannot be printed",
        ),
    ],
)
def test_what_a_description_states_and_is_not_honoured(
    layout: str, config: dict[str, object], reason: str, tmp_path: Path
) -> None:
    folder = WRITERS[layout](tmp_path, 5).folder
    describe(folder, lambda described: described.update(config))
    assert reason in refused(tmp_path, lambda: load_sae(folder)).reason


def test_a_description_of_dictionary_learning_is_named(tmp_path: Path) -> None:
    PICKLERS["dictionary_learning"](tmp_path, 5).folder.unlink()
    assert "dictionary_learning's, whose ae.pt is" in refused(tmp_path, lambda: load_sae(tmp_path)).reason


@pytest.mark.parametrize(
    ("part", "hook_name"),
    [
        ("resid_post_all", "model.layers.12.output"),
        ("mlp_out", "model.layers.12.post_feedforward_layernorm.output"),
        ("attn_out", "model.layers.12.self_attn.o_proj.input"),
        ("transcoder_all", "model.layers.12.pre_feedforward_layernorm.output"),
        ("clt", None),
    ],
)
def test_gemma_scope_2_without_a_description(part: str, hook_name: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2-270m-it" / part / "layer_12_width_16k_l0_small"
    folder.mkdir(parents=True)
    WRITERS["Gemma Scope 2"](folder, 3)
    (folder / "config.json").unlink()
    if hook_name is None:
        refused(tmp_path, lambda: load_sae(folder))
    else:
        sae = load_sae(folder)
        assert (sae.hook_name, sae.model_name) == (hook_name, "google/gemma-3-270m-it")


@pytest.mark.parametrize(("part", "reason"), [("transcoders", "a transcoder reads")])
def test_gemma_scope_where_it_reads_no_site(part: str, reason: str, tmp_path: Path) -> None:
    folder = WRITERS["Gemma Scope"](tmp_path, 3).folder
    other = tmp_path / f"gemma-scope-2b-pt-{part}" / "layer_7" / "width_16k" / "average_l0_71"
    folder.parents[2].rename(other.parents[2])
    assert reason in refused(tmp_path, lambda: load_sae(other)).reason


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["ae.pt", "config.json"], "convert it with: saegis sae convert"),
        (["Llama-3.1-8B-Instruct-SAE-l19.pth"], "convert it with: saegis sae convert"),
        (["conf.yaml", "latest_ckpt.safetensors"], "temporal SAEs: a token is encoded from those before"),
        (["layer_0.safetensors", "config.yaml"], "a transcoder in a file of its own; convert it with"),
        (["W_enc_0.safetensors", "W_dec_0.safetensors"], "cross-layer transcoders"),
        (["layers.0/cfg.json", "layers.1/cfg.json"], "SAEs lie in its folders: layers.0, layers.1; name one"),
        (["Qwen/layer3.sae.pt", "layer3.sae.pt"], "it holds layer3.sae.pt, a pickle of torch"),
        (["readme.md"], "an SAE in SAELens' layout has a cfg.json"),
    ],
)
def test_what_is_not_read_is_named(names: list[str], reason: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert reason in refused(tmp_path, lambda: load_sae(tmp_path)).reason
    if "SAELens" not in reason:
        assert reason in refused(tmp_path, lambda: check_sae(str(tmp_path))).reason


def _placed(tmp_path: Path, **stated: object) -> Iterator[Callable[[Unmatched], None]]:
    sae: SparseAutoencoder = replace(random_sae(), **stated)  # type: ignore[arg-type]
    save_sae(sae, tmp_path)
    source = SAESource(path=str(tmp_path), site="layers.1.resid_post")
    placed = read_sae(source, Widths(sae.width))
    names = ("/models/pythia-70m-deduped", "openai-community/gpt2")
    yield lambda unmatched: check_origin(placed, names, True, unmatched)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({"model_name": "EleutherAI/pythia-160m-deduped"}, "state the model EleutherAI/pythia-160m-deduped"),
        ({"model_name": "gpt2-medium"}, "state the model gpt2-medium"),
        ({"model_name": "gpt2-small", "hook_name": "blocks.2.hook_resid_post"}, "state the place blocks.2"),
        ({"model_name": None, "hook_name": "blocks.1.hook_attn_in"}, "no site of this server"),
    ],
)
def test_an_sae_of_another_model_or_place_is_refused_unless_it_is_forced(
    stated: dict[str, object], reason: str, tmp_path: Path
) -> None:
    (check,) = _placed(tmp_path, **stated)
    assert reason in refused(tmp_path, lambda: check(Unmatched.REFUSE)).reason
    check(Unmatched.WARN)


@pytest.mark.parametrize("model_name", [None, "gpt2-small", "GPT2", "EleutherAI/pythia-70m-deduped"])
def test_an_sae_of_this_model_is_taken(model_name: str | None, tmp_path: Path) -> None:
    (check,) = _placed(tmp_path, model_name=model_name)
    check(Unmatched.REFUSE)


def test_a_centred_stream_needs_layer_norms(tmp_path: Path) -> None:
    sae = replace(random_sae(), centred=True, model_name=None)
    save_sae(sae, tmp_path)
    placed = read_sae(SAESource(path=str(tmp_path)), Widths(sae.width))
    assert placed.loaded.sae.centred
    check_origin(placed, (), True, Unmatched.REFUSE)
    for unmatched in Unmatched:
        found = refused(tmp_path, partial(check_origin, placed, (), False, unmatched))
        assert "center_writing_weights" in found.reason


def test_the_norm_of_a_centred_stream_is_refused(tmp_path: Path) -> None:
    save_sae(random_sae(norm=Norm.CONSTANT_NORM), tmp_path)
    described = json.loads((tmp_path / "cfg.json").read_text())
    described["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(described))
    assert "center_writing_weights is true" in refused(tmp_path, lambda: load_sae(tmp_path)).reason
