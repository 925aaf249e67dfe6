"""Files of directions: what is read is what was written, and of a damaged file nothing is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.directions.files import DirectionFileError, read_direction, read_file
from tests.directions.files import WIDTH, damaged, npz, safetensors, vector

DAMAGED = damaged()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_safetensors_file(kind: torch.dtype) -> None:
    found = read_direction(safetensors(vector().to(kind), site="layers.1.resid_post", norm="3.5"), WIDTH)
    assert torch.equal(found.vector, vector().to(kind).to(torch.float32))
    assert (found.vector.dtype, found.site) == (torch.float32, "layers.1.resid_post")
    assert read_direction(safetensors(vector().to(kind)), WIDTH).site == ""


@pytest.mark.parametrize("kind", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_archive(kind: str, compressed: bool) -> None:
    array = vector().numpy().astype(kind)
    found = read_direction(npz(compressed, refusal=array), WIDTH)
    assert found.vector.numpy().tobytes() == array.astype("<f4").tobytes()
    assert found.site == ""


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_direction_is_refused(what: str, tmp_path: Path) -> None:
    data, told = DAMAGED[what]
    with pytest.raises(DirectionFileError) as refused:
        read_direction(data, WIDTH)
    assert told in str(refused.value)
    path = tmp_path / "refusal.npz"
    path.write_bytes(data)
    with pytest.raises(DirectionFileError, match=r"refusal\.npz: "):
        read_file(path, WIDTH)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DirectionFileError, match=r"none\.npz: cannot be read: No such file"):
        read_file(tmp_path / "none.npz", WIDTH)


WHOLE = (safetensors(vector(), site="x"), npz(refusal=vector().numpy()), npz(True, refusal=vector().numpy()))


@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.data(),
)
def test_a_changed_file_is_read_as_a_direction_or_refused(
    whole: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    changed = bytearray(whole)
    for place, byte in changes:
        changed[place % len(changed)] = byte
    cut = data.draw(st.integers(0, len(changed)))
    for attempt in (bytes(changed), bytes(changed[:cut])):
        try:
            found = read_direction(attempt, WIDTH)
        except DirectionFileError:
            continue
        assert (found.vector.dtype, found.vector.ndim) == (torch.float32, 1)
        assert np.isfinite(found.vector.numpy()).all()
        assert found.vector.any()
