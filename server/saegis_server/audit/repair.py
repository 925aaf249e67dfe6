"""Opening an audit log that is there already: who else holds it, where its chain ends, a torn last line."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

from saegis_server.audit.chain import BEGINNING, Line, Link, UnreadableLineError, read_line
from saegis_server.audit.disk import DIRECTORY_MODE, FILE_MODE, Disk
from saegis_server.audit.errors import AuditBrokenError
from saegis_server.audit.files import ACTIVE, ActiveFile, closed_files
from saegis_server.audit.records import RepairRecord


@dataclass(frozen=True, slots=True)
class Opened:
    """An audit log that can be written: its file, where its chain ends, and what must be repaired."""

    file: ActiveFile
    head: Link
    repair: RepairRecord | None


@dataclass(frozen=True, slots=True)
class _Scan:
    """A file, read: its first and last record, the bytes of whole records, and what is torn behind them."""

    first: Line | None
    head: Link
    size: int
    torn: bytes


def lock(directory: Path) -> int:
    """Make the directory where it is missing and hold it for this process; closing what is returned frees it.

    Raises AuditBrokenError where another process holds it, and OSError.
    """
    if not directory.exists():
        directory.mkdir(DIRECTORY_MODE, parents=True)
        Disk().sync_directory(directory.parent)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AuditBrokenError(
            f"{directory}: another server writes its audit log here; name another"
        ) from None
    return descriptor


def open_log(directory: Path, key: bytes | None, disk: Disk) -> Opened:
    """Read the newest file of a log, keep a torn last line beside it, and say where to go on.

    Raises AuditBrokenError where the file's records do not form a chain, and OSError.
    """
    active = directory / ACTIVE
    closed = closed_files(directory)
    if not active.exists() or active.stat().st_size == 0:
        head = _closed_head(closed[-1].path, key) if closed else BEGINNING
        return Opened(ActiveFile(directory, disk, 0, head.seq + 1, head.seq), head, None)
    scan = _scan(active, key)
    last_closed = closed[-1].last if closed else 0
    head = scan.head
    if scan.first is None and closed:
        head = _closed_head(closed[-1].path, key)
    elif scan.first is not None and scan.first.link.seq != last_closed + 1:
        raise _broken(active, 1, f"it begins with record {scan.first.link.seq}, not {last_closed + 1}")
    elif scan.first is not None and not closed and not scan.first.follows(BEGINNING):
        raise _broken(active, 1, "the first record of all names one before it")
    file = ActiveFile(directory, disk, scan.size, last_closed + 1, head.seq)
    if not scan.torn:
        return Opened(file, head, None)
    kept = _keep(directory, scan.torn, disk)
    return Opened(file, head, RepairRecord(bytes=len(scan.torn), kept_in=kept))


def _closed_head(path: Path, key: bytes | None) -> Link:
    scan = _scan(path, key)
    if scan.torn or scan.first is None:
        raise _broken(path, 0, "its end is missing")
    return scan.head


def _scan(path: Path, key: bytes | None) -> _Scan:
    first: Line | None = None
    head, size = BEGINNING, 0
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = read_line(text, key)
            except UnreadableLineError as error:
                if file.read(1):
                    raise _broken(path, number, str(error)) from error
                return _Scan(first, head, size, text)
            if not line.is_genuine:
                raise _broken(path, number, "its hash is wrong: it was changed, or has another key")
            if first is not None and not line.follows(head):
                raise _broken(path, number, f"it does not follow record {head.seq}")
            first, head, size = first or line, line.link, size + len(text)
    return _Scan(first, head, size, b"")


def _keep(directory: Path, torn: bytes, disk: Disk) -> str:
    """Write the torn bytes to a file of their own, before they are cut off; returns its name."""
    name = f"audit.torn-{time.time_ns()}"
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        rest = torn
        while rest:
            rest = rest[disk.write(descriptor, rest) :]
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)
    disk.sync_directory(directory)
    return name


def _broken(path: Path, line: int, what: str) -> AuditBrokenError:
    place = f"{path}:{line}" if line else str(path)
    return AuditBrokenError(
        f"{place}: {what}. The log is not continued; look at it with `saegis audit verify {path.parent}`, "
        "move its files away to keep them, and start again"
    )
