"""Folders of directions: each direction is as wide as its site, and comes back as it was kept."""

from pathlib import Path

import pytest

from saegis_server.directions.files import DirectionFileError
from saegis_server.directions.folder import UploadFolder, read_shipped
from saegis_server.directions.store import KeptDirection
from saegis_server.steering.site import Place, Site, Widths
from tests.directions.files import WIDTH, npz, safetensors, vector

STREAM, HEADS = Site(0, Place.RESID_POST), Site(0, Place.ATTN_Z)
NARROW = 16
WIDTHS = Widths(WIDTH, ((HEADS, NARROW),))


def test_a_direction_is_as_wide_as_its_site(tmp_path: Path) -> None:
    heads, stream = tmp_path / "heads.safetensors", tmp_path / "stream.npz"
    heads.write_bytes(safetensors(vector(width=NARROW), site=str(HEADS)))
    stream.write_bytes(npz(a=vector().numpy()))
    found = read_shipped([tmp_path], WIDTHS, (STREAM, HEADS))
    assert [(each.name, each.site, each.size) for each in found] == [
        ("heads", HEADS, 4 * NARROW),
        ("stream", None, 4 * WIDTH),
    ]
    for data, told in (
        (safetensors(vector(width=NARROW)), "must have 32 numbers"),
        (
            safetensors(vector(), site=str(HEADS)),
            f"must have 16 numbers, as the model's activations at {HEADS}",
        ),
    ):
        heads.write_bytes(data)
        with pytest.raises(DirectionFileError, match=told):
            read_shipped([heads], WIDTHS, (STREAM, HEADS))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path / "kept")
    kept = {
        ("a/b", "x"): (vector(1), STREAM),
        ("a/b", ""): (vector(2), None),
        ("..", "x"): (vector(3, NARROW), HEADS),
    }
    for (tenant, name), (numbers, site) in kept.items():
        folder.write(tenant, KeptDirection.of(numbers, name, site), numbers)
    gone = KeptDirection.of(vector(4))
    folder.write("a/b", gone, vector(4))
    folder.remove("a/b", gone)
    folder.remove("a/b", gone)
    folder.close()
    again = UploadFolder(tmp_path / "kept")
    read = {(tenant, each.name): (each.digest, each.site) for tenant, each in again.read(WIDTHS)}
    assert read == {key: (KeptDirection.of(numbers).digest, site) for key, (numbers, site) in kept.items()}
    assert sorted(tmp_path.iterdir()) == [tmp_path / "kept"]
    with pytest.raises(DirectionFileError, match=r"kept/.*\.safetensors: must have 64 numbers"):
        again.read(Widths(64))
    again.close()
    again.close()
