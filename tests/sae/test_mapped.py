"""Large SAEs: their matrices stay in the file, which is read once and must not change; nothing is copied."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from saegis_server.sae import layout
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder, times
from saegis_server.sae.checks import measure
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import load_sae
from saegis_server.sae.formats.saelens import CONFIG_FILE, WEIGHTS_FILE, save_sae
from saegis_server.steering.rows import Norm
from tests.sae.sae_cases import random_sae

WIDTH, FEATURES = 24, 80
#: Loads an SAE of 2 · 64 MB and takes two features, mapped and then copied, and prints by how many MB the
#: process has grown each time.
_GROWTH = """
import sys
from pathlib import Path
from saegis_server.sae import layout
from saegis_server.sae.files import load_sae

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

kept = []
for layout.MAPPED_FROM in (2**20, 2**30):
    before = resident()
    sae = load_sae(Path(sys.argv[1]))
    kept.append((sae, sae.probe(5), sae.probe(sae.features - 1)))
    print(resident() - before)
"""


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every matrix be a large one."""
    monkeypatch.setattr(layout, "MAPPED_FROM", 0)


def written(
    folder: Path, architecture: Architecture = Architecture.JUMPRELU, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """An SAE in a folder, its matrices of a dtype."""
    save_sae(random_sae(architecture, width=WIDTH, features=FEATURES), folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    return folder


def copied(folder: Path) -> SparseAutoencoder:
    """The same SAE as float32 copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAPPED_FROM", 2**30)
        return load_sae(folder)


def file_at(address: int) -> str:
    """The file that is mapped where an address of this process is; empty for memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return "".join(path)
    return ""


def changed(folder: Path, name: str, change: Tensor) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[name] = change.to(tensors[name])
    save_file(tensors, folder / WEIGHTS_FILE)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("architecture", list(Architecture))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mapped_sae_is_the_copied_one(
    tmp_path: Path, architecture: Architecture, dtype: torch.dtype
) -> None:
    folder = written(tmp_path, architecture, dtype)
    sae = load_sae(folder)
    same = replace(copied(folder), digest=sae.digest)  # that of a mapped file is made by parts
    assert same.mapped is None
    assert sae.mapped is not None
    assert {sae.W_enc.dtype, sae.W_dec.dtype} == {dtype}
    for matrix in (sae.W_enc, sae.W_dec):
        assert file_at(matrix.data_ptr()) == str(folder / WEIGHTS_FILE)
    for feature in range(FEATURES):
        ours, theirs = sae.probe(feature), same.probe(feature)
        assert ours.digest == theirs.digest  # of all that it is
        assert ours.read.dtype == ours.write.dtype == torch.float32
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sae.encode(x), same.encode(x))
    torch.testing.assert_close(sae.decode(sae.encode(x), x), same.decode(same.encode(x), x))
    assert measure(sae, x).fvu == pytest.approx(measure(same, x).fvu)
    few = sae.only([3, 70])
    assert few.mapped is None
    torch.testing.assert_close(few.encode(x), same.encode(x)[:, [3, 70]])
    for row, wanted in zip(sae.rows(), same.rows(), strict=True):
        assert torch.equal(row, wanted)
    save_sae(sae, tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / WEIGHTS_FILE)["W_dec"], same.W_dec)


@pytest.mark.usefixtures("mapped")
def test_what_ranks_a_mapped_sae_is_no_part_of_its_file(tmp_path: Path) -> None:
    """So a change of the file changes no rank, and one before is refused."""
    folder = tmp_path / "topk"
    save_sae(random_sae(Architecture.STANDARD, width=WIDTH, features=FEATURES, k=6), folder)
    sae, same = load_sae(folder), copied(folder)
    ranked, wanted = sae.ranked("cpu"), same.ranked("cpu")
    assert ranked is not None
    assert wanted is not None
    assert sae.mapped is not None
    assert file_at(ranked.encoder.data_ptr()) != str(folder / WEIGHTS_FILE)
    assert wanted.encoder.data_ptr() == same.W_enc.data_ptr()
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ranked.cuts(x), wanted.cuts(x))
    changed(folder, "W_enc", torch.zeros_like(same.W_enc))
    with pytest.raises(SAEFileError, match="changed"):
        sae.ranked("cpu")


@given(
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_parts_make_the_whole_product(dtype: torch.dtype, rows: int, columns: int, at_once: int) -> None:
    draw = torch.Generator().manual_seed(rows * 41 + columns)
    x, matrix = torch.randn(2, 3, rows, generator=draw), torch.randn(rows, columns, generator=draw).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saegis_server.sae.autoencoder._AT_ONCE", at_once)
        torch.testing.assert_close(times(x, matrix), x @ matrix.float())


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("part", [256, 1 << 26])
def test_the_digest_is_that_of_the_parts_of_the_files(
    tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the header, of each tensor by pieces, in the order of the file, and of the description."""
    monkeypatch.setattr("saegis_server.sae.mapped._PART", part)
    monkeypatch.setattr("saegis_server.sae.mapped._AT_ONCE", 64)
    folder = written(tmp_path)
    content = (folder / WEIGHTS_FILE).read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    parts = [content[:begin]]
    entries = json.loads(content[8:begin])
    entries.pop("__metadata__", None)
    for start, end in sorted(entry["data_offsets"] for entry in entries.values()):
        parts += [content[begin + at : begin + min(end, at + part)] for at in range(start, end, part)]
    assert b"".join(parts) == content
    parts.append((folder / CONFIG_FILE).read_bytes())
    each = b"".join(hashlib.sha256(piece).digest() for piece in parts)
    assert load_sae(folder).digest == hashlib.sha256(each).hexdigest()


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_magnitude_is_found(tmp_path: Path, dtype: torch.dtype, sign: float) -> None:
    folder = written(tmp_path, dtype=dtype)
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["W_dec"].view(-1)[-1] = 77.0 * sign
    save_file(tensors, folder / WEIGHTS_FILE)
    found = load_sae(folder).mapped
    assert found is not None
    assert found.largest == 77.0
    signed = {name: sign * tensor.abs() for name, tensor in tensors.items() if name.startswith("W_")}
    save_file({**tensors, **signed}, folder / WEIGHTS_FILE)
    found = load_sae(folder).mapped
    assert found is not None
    assert found.largest == 77.0


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, number: float) -> None:
    folder = written(tmp_path)
    tensor = load_file(folder / WEIGHTS_FILE)[name]
    tensor.view(-1)[17] = number
    changed(folder, name, tensor)
    with pytest.raises(SAEFileError, match=rf"{name} holds numbers that are not finite"):
        load_sae(folder)


@pytest.mark.usefixtures("mapped")
def test_biases_that_fold_to_infinity_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, dtype=torch.float32)
    changed(folder, "b_dec", torch.full((WIDTH,), 1e30))
    changed(folder, "W_enc", torch.full((WIDTH, FEATURES), 1e20))
    with pytest.raises(SAEFileError, match="b_dec·W_enc is not finite"):
        load_sae(folder)


@pytest.mark.usefixtures("mapped")
def test_a_file_that_changes_is_read_no_more(tmp_path: Path) -> None:
    folder = written(tmp_path)
    sae = load_sae(folder)
    sae.probe(1)
    path = folder / WEIGHTS_FILE
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    for taken in (lambda: sae.probe(1), lambda: sae.only([1])):
        with pytest.raises(SAEFileError, match="has changed since it was loaded"):
            taken()


@pytest.mark.usefixtures("mapped")
def test_what_is_folded_is_folded_into_copies(tmp_path: Path) -> None:
    folder = written(tmp_path)
    path = folder / CONFIG_FILE
    stated = json.loads(path.read_text())
    stated |= {"normalize_activations": "expected_average_only_in", "norm_scaling_factor": 0.3}
    path.write_text(json.dumps(stated))
    sae = load_sae(folder)
    assert (sae.mapped, sae.W_enc.dtype, sae.norm) == (None, torch.float32, Norm.NONE)


@pytest.mark.slow
def test_loading_a_large_file_does_not_make_the_process_large(tmp_path: Path) -> None:
    """Against the same file copied, in a process of its own."""
    width, features = 256, 131_072
    numbers = torch.arange(width * features, dtype=torch.int16).remainder(997).to(torch.bfloat16) / 4096
    tensors = {
        "W_enc": numbers.view(width, features),
        "W_dec": numbers.view(features, width).clone(),
        "b_enc": torch.zeros(features, dtype=torch.bfloat16),
        "b_dec": torch.zeros(width, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    config = {"architecture": "standard", "d_in": width, "d_sae": features, "dtype": "bfloat16"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"normalize_activations": "none"}))

    command = [sys.executable, "-c", _GROWTH, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mapped_growth, copied_growth = map(float, told.split())
    assert mapped_growth < 100
    assert copied_growth > 250
