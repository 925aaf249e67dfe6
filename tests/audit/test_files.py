"""The files of a log: who may hold them, and what is done where they are torn, broken or touched."""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.audit import AuditBrokenError, AuditUnavailableError
from saegis_server.audit.files import ACTIVE, closed_files
from saegis_server.audit.log import AuditLog
from saegis_server.audit.verify import verify
from tests.audit import logs
from tests.tiers import sized


def test_two_logs_cannot_share_a_directory(tmp_path: Path) -> None:
    log = AuditLog(logs.settings(tmp_path))
    with pytest.raises(AuditBrokenError, match="another server writes"):
        AuditLog(logs.settings(tmp_path))
    log.close()
    AuditLog(logs.settings(tmp_path)).close()
    assert logs.is_chain(logs.lines(tmp_path))


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "here"
    logs.write(logs.settings(directory, max_bytes=1024), 10)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: lines.pop(1), ":2: it does not follow record 1"),
        (lambda lines: lines.pop(0), ":1: it begins with record 2, not 1"),
        (lambda lines: lines.__setitem__(1, lines[1].replace(b"bob", b"eve")), ":2: its hash is wrong"),
        (lambda lines: lines.__setitem__(1, b"nothing\n"), ":2: the line is no JSON"),
    ],
)
def test_a_broken_log_is_not_continued(
    tmp_path: Path, edit: Callable[[list[bytes]], object], message: str
) -> None:
    logs.write(logs.settings(tmp_path), 4)
    lines = (tmp_path / ACTIVE).read_bytes().splitlines(keepends=True)
    edit(lines)
    (tmp_path / ACTIVE).write_bytes(b"".join(lines))
    with pytest.raises(AuditBrokenError, match=message):
        AuditLog(logs.settings(tmp_path))
    assert (tmp_path / ACTIVE).read_bytes() == b"".join(lines)


@settings(max_examples=sized(60, 20), deadline=None)
@given(cut=st.integers(1, 400), garbage=st.sampled_from([b"", b"\0" * 50, b"\0" * 50 + b"\n"]))
def test_a_torn_tail_is_cut_off_kept_and_recorded(cut: int, garbage: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        logs.write(logs.settings(directory), 4)
        content = (directory / ACTIVE).read_bytes()
        last = content.splitlines(keepends=True)[-1]
        torn = last[: -min(cut, len(last) - 1)] + garbage
        (directory / ACTIVE).write_bytes(content[: -len(last)] + torn)
        AuditLog(logs.settings(directory)).close()
        found = logs.lines(directory)
        assert logs.is_chain(found)
        assert [record["kind"] for record in found[5:]] == ["repair", "start", "stop"]
        assert found[5]["bytes"] == len(torn)
        assert (directory / found[5]["kept_in"]).read_bytes() == torn
        assert verify(directory).problems == ()


def _move(active: Path) -> None:
    active.rename(active.with_suffix(".away"))


def _replace(active: Path) -> None:
    content = active.read_bytes()
    active.unlink()
    active.write_bytes(content)


def _cut(active: Path) -> None:
    os.truncate(active, 10)


def _grow(active: Path) -> None:
    with active.open("ab") as file:
        file.write(b"{}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_move, "moved or deleted"),
        (_replace, "replaced"),
        (_cut, "has 10 bytes"),
        (_grow, "somebody changed it"),
    ],
)
def test_a_file_that_somebody_else_touches_is_not_written(
    tmp_path: Path, change: object, message: str
) -> None:
    assert callable(change)
    log = AuditLog(logs.settings(tmp_path))
    change(tmp_path / ACTIVE)
    for _ in range(2):
        with pytest.raises(AuditUnavailableError, match=message):
            log.append(logs.put()).result()
    log.close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditUnavailableError, match="Not a directory"):
        AuditLog(logs.settings(tmp_path / "file" / "log"))


def test_a_file_in_the_way_of_rotation_is_not_overwritten(tmp_path: Path) -> None:
    log = AuditLog(logs.settings(tmp_path, max_bytes=1024))
    for last in range(1, 9):
        (tmp_path / f"audit-{1:012}-{last:012}.jsonl").write_text("in the way")
    futures = [log.append(logs.put()) for _ in range(8)]
    with pytest.raises(AuditUnavailableError, match="there already"):
        futures[-1].result()
    for each in closed_files(tmp_path):
        assert each.path.read_text() == "in the way"
        each.path.unlink()
    log.append(logs.put()).result()
    log.close()
    assert logs.is_chain(logs.lines(tmp_path))
