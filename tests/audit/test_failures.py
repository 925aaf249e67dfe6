"""The audit log where the disk fails: it refuses while it cannot write, and goes on without a break."""

import errno
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.audit import AuditUnavailableError
from saegis_server.audit.chain import Link
from saegis_server.audit.files import Disk
from saegis_server.audit.log import AuditLog
from saegis_server.audit.verify import verify
from tests.audit import logs
from tests.audit.logs import is_chain, lines, put

OPERATIONS = ("open", "write", "half", "fsync", "truncate", "rename", "remove", "sync_directory")


class FailingDisk(Disk):
    """A disk on which the operation `failing` fails, before it does anything, or, "half", within a write."""

    failing = ""

    def _fail(self, operation: str) -> None:
        if self.failing == operation:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open(self, path: Path, create: bool) -> int:
        self._fail("open")
        return super().open(path, create)

    def write(self, descriptor: int, data: bytes) -> int:
        self._fail("write")
        if self.failing == "half":
            super().write(descriptor, data[: len(data) // 2])
            self._fail("half")
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._fail("fsync")
        super().fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        self._fail("truncate")
        super().truncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        self._fail("rename")
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        self._fail("remove")
        super().remove(path)

    def sync_directory(self, directory: Path) -> None:
        self._fail("sync_directory")
        super().sync_directory(directory)


@pytest.mark.parametrize("operation", ["write", "half", "fsync"])
def test_a_failed_write_is_refused_and_the_next_goes_on(tmp_path: Path, operation: str) -> None:
    disk = FailingDisk()
    log = AuditLog(logs.settings(tmp_path), disk=disk)
    log.append(put(1)).result()
    disk.failing = operation
    for number in (2, 3):
        with pytest.raises(AuditUnavailableError, match="No space left on device"):
            log.append(put(number)).result()
    disk.failing = ""
    assert log.append(put(4)).result().seq == 4
    log.close()
    found = lines(tmp_path)
    assert is_chain(found)
    assert [record["kind"] for record in found] == ["start", "policy", "lost", "policy", "stop"]
    assert found[2]["records"] == 2
    assert "No space left" in found[2]["reason"]
    assert [record["name"] for record in found[1:4:2]] == ["policy-1", "policy-4"]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["", "", *OPERATIONS]), st.integers(1, 4)), min_size=1, max_size=20
    ),
    keep=st.sampled_from([None, 1, 3]),
)
def test_whatever_fails_the_acknowledged_records_are_one_chain(
    steps: list[tuple[str, int]], keep: int | None
) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory, disk = Path(name), FailingDisk()
        log = AuditLog(logs.settings(directory, max_bytes=1024, keep=keep), disk=disk)
        written: dict[str, Link] = {}
        refused: set[str] = set()
        for number, (failing, records) in enumerate(steps):
            disk.failing = failing
            futures = {f"{number}-{each}": log.append(put(by=f"{number}-{each}")) for each in range(records)}
            for message, future in futures.items():
                try:
                    written[message] = future.result()
                except AuditUnavailableError:
                    refused.add(message)
        disk.failing = ""
        log.append(put(by="")).result()
        log.close()
        assert verify(directory).problems == ()
        found = lines(directory)
        told = {record["by"]: Link(record["seq"], record["hash"]) for record in found if record.get("by")}
        assert told.items() <= written.items()
        assert not told.keys() & refused
        if keep is None:
            assert is_chain(found)
            assert told == written
            assert sum(record.get("records", 0) for record in found) == len(refused)
        else:
            first = found[0]["seq"]
            assert {message for message, place in written.items() if place.seq >= first} == told.keys()


def test_a_start_that_cannot_be_written_lets_go_of_the_directory(tmp_path: Path) -> None:
    disk = FailingDisk()
    disk.failing = "write"
    with pytest.raises(AuditUnavailableError, match="No space left"):
        AuditLog(logs.settings(tmp_path), disk=disk)
    AuditLog(logs.settings(tmp_path)).close()
    assert is_chain(lines(tmp_path))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from saegis_server.audit import AuditUnavailableError
from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import IdentityRecord
from saegis_server.audit.log import AuditSettings

assert not {"torch", "transformers", "grpc"} & sys.modules.keys()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
log = AuditLog(AuditSettings(directory=Path(sys.argv[1])))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
written = refused = 0
for number in range(20):
    try:
        log.append(IdentityRecord(method="m", peer="p", reason=str(number))).result()
        written += 1
    except AuditUnavailableError as error:
        assert "File too large" in str(error), error
        refused += 1
assert log.is_failing and log.refuses
assert Path(sys.argv[1], "audit.jsonl").read_bytes().endswith(b"\\n"), "no half a line stays"
if sys.argv[2] == "frees":
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    log.append(IdentityRecord(method="m", peer="p", reason="after")).result()
    assert not log.is_failing
log.close()
print(written, refused)
"""


def fill_the_disk(directory: Path, then: str) -> tuple[int, int]:
    """How many records were written and refused in a process whose files may not grow beyond a size."""
    command = [sys.executable, "-c", FULL_DISK, str(directory), then]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written, refused = map(int, done.stdout.split())
    return written, refused


def test_a_log_that_ends_on_a_full_disk_is_whole(tmp_path: Path) -> None:
    written, _ = fill_the_disk(tmp_path, "ends")
    found = verify(tmp_path)
    assert (found.problems, found.records) == ((), written + 1)
    AuditLog(logs.settings(tmp_path)).close()
    assert [record["kind"] for record in lines(tmp_path)][-3:] == ["identity", "start", "stop"]


def test_a_log_finds_out_by_itself_that_it_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saegis_server.audit.log.RETRY_SECONDS", 0.02)
    disk = FailingDisk()
    log = AuditLog(logs.settings(tmp_path), disk=disk)
    disk.failing = "write"
    with pytest.raises(AuditUnavailableError):
        log.append(put()).result()
    assert (log.is_failing, log.refuses) == (True, True)
    disk.failing = ""
    until = time.monotonic() + 5.0
    while log.is_failing and time.monotonic() < until:
        time.sleep(0.01)
    assert (log.is_failing, log.refuses) == (False, False), "nobody asked it to write anything"
    log.close()
    assert [record["kind"] for record in lines(tmp_path)] == ["start", "lost", "stop"]


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """The system itself ends a write in the middle of a line, and lets it through later."""
    written, refused = fill_the_disk(tmp_path, "frees")
    assert written > 2
    assert refused > 10
    found = lines(tmp_path)
    assert is_chain(found)
    kinds = [record["kind"] for record in found]
    assert kinds == ["start", *["identity"] * written, "lost", "identity", "stop"]
    assert found[-3]["records"] == refused
