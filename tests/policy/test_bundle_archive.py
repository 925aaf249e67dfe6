"""Archives: whatever packs them they are read alike, and nothing gets in that is no file of a bundle."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis.bundles import MOST_FILES, write_archive
from saegis_server.policy.bundle.files import MOST_TAR_BYTES, read_archive
from saegis_server.policy.errors import BundleError
from tests.policy.bundles import POLICY, bundle_files, write_files
from tests.tiers import sized


def packed(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these members, as Python's own writer makes it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=form) as tar:
        for entry, data in members:
            tar.addfile(entry, io.BytesIO(data))
    return written.getvalue()


def member(name: str, data: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for key, value in changes.items():
        setattr(entry, key, value)
    return entry, data


def sealed(header: bytearray) -> bytes:
    """A header with the checksum that fits it."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("root", [".", ""])
def test_an_archive_of_pythons_writer_is_read(tmp_path: Path, form: int, mode: str, root: str) -> None:
    folder = write_files(tmp_path / "policy", bundle_files())
    path = tmp_path / "policy.tar"
    # A time with a fraction and headers for everyone: PAX keeps them in extension headers.
    headers = {"comment": "made by hand"} if form == tarfile.PAX_FORMAT else None
    with tarfile.open(path, mode, format=form, pax_headers=headers) as tar:  # type: ignore[call-overload]
        tar.add(folder, root)
    assert read_archive(path.read_bytes()) == bundle_files()


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar of the system")
@pytest.mark.parametrize("form", ["ustar", "gnu", "posix", "oldgnu"])
def test_an_archive_of_the_systems_tar_is_read(tmp_path: Path, form: str) -> None:
    folder = write_files(tmp_path / "policy", bundle_files())
    path = tmp_path / "policy.tar.gz"
    subprocess.run(["tar", "-C", folder, f"--format={form}", "-czf", path, "."], check=True)
    assert read_archive(path.read_bytes()) == bundle_files()


NAMES = st.from_regex(r"(rules|tests)/[a-z0-9_]{1,60}\.yaml", fullmatch=True)


@settings(max_examples=sized(60, 15), deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=2000), max_size=6))
def test_what_is_written_is_read_bit_by_bit_and_written_alike(files: dict[str, bytes]) -> None:
    written = write_archive(files)
    assert read_archive(written) == files
    assert write_archive(dict(reversed(files.items()))) == written
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        assert {entry.name: entry.size for entry in tar} == {path: len(data) for path, data in files.items()}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (
            [member("policy.yaml", type=tarfile.SYMTYPE, linkname="/etc/passwd")],
            "links and devices are not read",
        ),
        ([member("policy.yaml", type=tarfile.LNKTYPE, linkname="x")], "links and devices are not read"),
        (
            [member("policy.yaml", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
            "links and devices are not read",
        ),
        ([member("policy.yaml", type=tarfile.BLKTYPE)], "links and devices are not read"),
        ([member("policy.yaml", type=tarfile.FIFOTYPE)], "links and devices are not read"),
        ([member("policy.yaml", type=tarfile.CONTTYPE)], "links and devices are not read"),
        ([member("policy.yaml", b"x", type=b"S")], "links and devices are not read"),
        ([member("../policy.yaml", b"x")], "../policy.yaml: does not belong here"),
        ([member("/etc/passwd", b"x")], "/etc/passwd: does not belong here"),
        ([member("/policy.yaml", b"x")], "/policy.yaml: does not belong here"),
        ([member("rules/../../x.yaml", b"x")], "does not belong here"),
        ([member("rules/./a.yaml", b"x")], "does not belong here"),
        ([member("policy/policy.yaml", b"x")], "pack it with: tar -C FOLDER"),
        ([member("policy", type=tarfile.DIRTYPE)], "pack it with: tar -C FOLDER"),
        ([member("..", type=tarfile.DIRTYPE)], "does not belong here"),
        ([member("rules/deep", type=tarfile.DIRTYPE)], "does not belong here"),
        ([member("policy.yaml\n", b"x")], "does not belong here"),
        ([member("a" * 300 + ".yaml", b"x")], "the extension header"),
        ([member("rules/ü.yaml", b"x")], "the extension header"),
        ([member("policy.yaml", b"x", pax_headers={"path": "rules/a.yaml"})], "the extension header"),
        ([member("policy.yaml", b"x", pax_headers={"size": "0"})], "the extension header"),
        ([member("policy.yaml", b"x", pax_headers={"linkpath": "y"})], "the extension header"),
        ([member("policy.yaml", b"x", pax_headers={"GNU.sparse.size": "9"})], "the extension header"),
        (
            [member("policy.yaml", b"x"), member("./policy.yaml", b"y")],
            "policy.yaml: is in the archive twice",
        ),
    ],
)
def test_members_that_do_not_belong_are_refused(
    entries: list[tuple[tarfile.TarInfo, bytes]], told: str
) -> None:
    with pytest.raises(BundleError) as caught:
        read_archive(packed(*entries))
    assert told in str(caught.value)


def _with_size(field: bytes) -> bytes:
    data = bytearray(packed(member("policy.yaml", b"x" * 600), form=tarfile.USTAR_FORMAT))
    data[124:136] = field
    return sealed(data[:512]) + bytes(data[512:])


def _named(name: bytes) -> bytes:
    data = bytearray(packed(member("x", b"x"), form=tarfile.USTAR_FORMAT))
    data[: len(name)] = name
    return sealed(data[:512]) + bytes(data[512:])


def _extended(content: bytes) -> bytes:
    """A PAX header of this content before a member."""
    return packed(
        member("x", content, type=tarfile.XHDTYPE), member("policy.yaml"), form=tarfile.USTAR_FORMAT
    )


def _prefixed(prefix: bytes) -> bytes:
    data = bytearray(packed(member("policy.yaml", b"x"), form=tarfile.USTAR_FORMAT))
    data[345 : 345 + len(prefix)] = prefix
    return sealed(data[:512]) + bytes(data[512:])


GOOD = packed(member("policy.yaml", POLICY.encode()), form=tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        # A size below zero leads readers around in circles (CVE-2025-8194).
        (lambda: _with_size(b"\xff" * 12), "size of 'policy.yaml' is no number"),
        (lambda: _with_size(b"\x80" + b"\0" * 10 + b"\x01"), "is no number"),
        (lambda: _with_size(b"-0000000001\0"), "is no number"),
        (lambda: _with_size(b"77777777777\0"), "the archive ends within it"),
        (lambda: _named("rules/ü.yaml".encode()), "whose name is not ASCII"),
        (lambda: _extended(b"nonsense"), "an extension header cannot be read"),
        # Many digits without an end hold other readers up (CVE-2024-6232).
        (lambda: _extended(b"1" * 60_000), "an extension header cannot be read"),
        (lambda: _extended(b"99 mtime=1\n"), "an extension header cannot be read"),
        (lambda: _extended(b"8 mtime\n"), "an extension header cannot be read"),
        (lambda: _prefixed(b"../.."), "../../policy.yaml: does not belong"),
        (lambda: GOOD[:600], "the archive ends within it"),
        (lambda: GOOD[: 512 + -(-len(POLICY) // 512) * 512], "ends before its end is marked"),
        (lambda: GOOD[:-512] + b"\0" * 511 + b"x", "bytes behind its end"),
        (lambda: GOOD[:100] + b"7" + GOOD[101:], "does not fit its checksum"),
        (lambda: b"", "is no tar"),
        (lambda: b"PK\x03\x04" + b"\0" * 2000, "is no tar"),
        (lambda: gzip.compress(GOOD)[:-9], "no whole gzip file"),
        (lambda: gzip.compress(GOOD) + b"more", "no whole gzip file"),
        (lambda: b"\x1f\x8b" + bytes(20), "no whole gzip file"),
        (
            lambda: packed(*[member(f"rules/{n}.yaml") for n in range(MOST_FILES + 1)]),
            f"more than {MOST_FILES} files",
        ),
    ],
)
def test_damaged_and_crafted_archives_are_refused(make: Callable[[], bytes], told: str) -> None:
    with pytest.raises(BundleError) as caught:
        read_archive(make())
    assert told in str(caught.value)


def test_a_gzip_bomb_is_unpacked_no_further_than_allowed() -> None:
    """A quarter of a gibibyte of zeros in a megabyte: of all that, only the limit and a byte are made."""
    pump = zlib.compressobj(1, wbits=31)
    bomb = b"".join(pump.compress(bytes(1 << 24)) for _ in range(16)) + pump.flush()
    assert len(bomb) < 2 << 20
    with pytest.raises(BundleError, match=f"unpacks to more than {MOST_TAR_BYTES} bytes"):
        read_archive(bomb)
    with pytest.raises(BundleError, match="unpacks to more than"):
        read_archive(bytes(MOST_TAR_BYTES + 1))


@settings(max_examples=sized(300, 60), deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_mutated_archives_are_refused_or_hold_files_that_belong(seed: int, whole: bool) -> None:
    draw = random.Random(seed)
    data = bytearray(
        write_archive(bundle_files()) if whole else gzip.decompress(write_archive(bundle_files()))
    )
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(min(len(data), 4096))
        choice = draw.randrange(4)
        if choice == 0:
            data[at] = draw.randrange(256)
        elif choice == 1:
            del data[at : at + draw.randrange(600)]
        elif choice == 2:
            block = at // 512 * 512
            data[block:block] = data[block : block + 512]
        elif not whole:
            block = at // 512 * 512
            header = data[block : block + 512]
            header[draw.choice((0, 124, 156, 157, 257, 345)) + draw.randrange(6)] = draw.randrange(256)
            data[block : block + 512] = sealed(header)
    try:
        found = read_archive(bytes(data))
    except BundleError as error:
        assert error.problems  # noqa: PT017 - it may also be read
    else:
        assert all(not path.startswith(("/", ".")) and ".." not in path for path in found)
