"""The files of the audit log: their names, the active file, and opening an existing log."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saegis_server.audit import AuditBrokenError, AuditUnavailableError
from saegis_server.audit.chain import BEGINNING, Line, Link, UnreadableLineError, read_line
from saegis_server.audit.records import RepairRecord

#: The active file, to which records are written; closed ones are `audit-<first record>-<last record>.jsonl`.
ACTIVE = "audit.jsonl"
_CLOSED = re.compile(r"audit-(\d{12,})-(\d{12,})\.jsonl\Z")
#: Only their owner may read the files of the log.
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class Disk:
    """The operations of the log on the disk, one method each, so that tests can end a process at any of them.

    Every method raises the OSError of the system.
    """

    def open(self, path: Path, create: bool) -> int:
        """Open for reading and for writing at the end; returns the descriptor."""
        return os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), FILE_MODE)

    def write(self, descriptor: int, data: bytes) -> int:
        """Write at the end; returns how many bytes were written."""
        return os.write(descriptor, data)

    def write_all(self, descriptor: int, data: bytes) -> None:
        """Write all of it at the end, with a single write if the system allows."""
        rest = memoryview(data)
        while rest:
            rest = rest[self.write(descriptor, bytes(rest)) :]

    def fsync(self, descriptor: int) -> None:
        """Force what was written to the disk."""
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut to `size` bytes."""
        os.ftruncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name."""
        path.rename(target)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def sync_directory(self, directory: Path) -> None:
        """Force the file names of a directory to the disk."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True, order=True)
class ClosedFile:
    """A closed file: its path, and the numbers of its first and last record from its name."""

    first: int
    last: int
    path: Path


def closed_files(directory: Path) -> list[ClosedFile]:
    """The closed files of a log, oldest first."""
    matches = [(_CLOSED.match(path.name), path) for path in directory.iterdir()]
    return sorted(ClosedFile(int(match[1]), int(match[2]), path) for match, path in matches if match)


def log_files(directory: Path) -> list[Path]:
    """All files of a log, oldest first, the active one last."""
    active = directory / ACTIVE
    return [file.path for file in closed_files(directory)] + ([active] if active.exists() else [])


class ActiveFile:
    """The active file. size: bytes of whole records. first: the number of its first record, or of the one
    to come. last: the number of the newest record in it or in the files before it.

    What a failed write left behind is cut off before the next one. Used by one thread. Methods raise OSError,
    and AuditUnavailableError if somebody else moved or changed the file.
    """

    def __init__(self, directory: Path, disk: Disk, size: int, first: int, last: int) -> None:
        self.size = size
        self.last = last
        self._first = first
        self._directory = directory
        self._path = directory / ACTIVE
        self._disk = disk
        self._descriptor: int | None = None

    def append(self, lines: bytes, last: int, sync: bool) -> None:
        """Write whole lines; `last` is the number of their last record."""
        descriptor = self._open()
        try:
            self._disk.write_all(descriptor, lines)
            if sync:
                self._disk.fsync(descriptor)
        except OSError:
            # Cut off at once if possible: the process may end before the next write.
            with suppress(OSError):
                self._disk.truncate(descriptor, self.size)
            self.close()
            raise
        self.size += len(lines)
        self.last = last

    def sync(self) -> None:
        """Force what was written to the disk."""
        descriptor = self._open()
        try:
            self._disk.fsync(descriptor)
        except OSError:
            self.close()
            raise

    def rotate(self, sync: bool) -> None:
        """Rename the file to the name of a closed one, and begin a new one."""
        if sync:
            self.sync()
        target = self._directory / f"audit-{self._first:012}-{self.last:012}.jsonl"
        if target.exists():
            raise AuditUnavailableError(f"{target.name} is there already; move it away")
        self._disk.rename(self._path, target)
        self.close()
        self.size, self._first = 0, self.last + 1
        self._disk.sync_directory(self._directory)
        self._open()

    def close(self) -> None:
        """Close the descriptor; the next use opens the file again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        """The descriptor of the file, cut to the whole records that were written."""
        if self._descriptor is not None:
            self._check_untouched(self._descriptor)
            return self._descriptor
        # A file that should hold records is never created: it would begin in the middle of the chain.
        create = self.size == 0
        descriptor = self._disk.open(self._path, create)
        try:
            size = os.fstat(descriptor).st_size
            if size < self.size:
                raise AuditUnavailableError(f"{ACTIVE} has {size} bytes, and {self.size} were written to it")
            if size > self.size:
                self._disk.truncate(descriptor, self.size)
                self._disk.fsync(descriptor)
            if create:
                self._disk.sync_directory(self._directory)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor

    def _check_untouched(self, descriptor: int) -> None:
        mine = os.fstat(descriptor)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            raise AuditUnavailableError(f"{ACTIVE} was moved or deleted while it was written") from None
        if (mine.st_dev, mine.st_ino) != (named.st_dev, named.st_ino):
            raise AuditUnavailableError(f"{ACTIVE} was replaced while it was written")
        if mine.st_size != self.size:
            raise AuditUnavailableError(
                f"{ACTIVE} has {mine.st_size} bytes, and {self.size} were written to it: somebody changed it"
            )


@dataclass(frozen=True, slots=True)
class Opened:
    """An audit log that can be written: its active file, the end of its chain, and the record of a repair."""

    file: ActiveFile
    head: Link
    repair: RepairRecord | None


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scanned file: its first and last record, the size of whole records, and the torn bytes after them."""

    first: Line | None
    head: Link
    size: int
    torn: bytes


def lock(directory: Path) -> int:
    """Lock the directory for this process, and make it if missing. Closing the returned descriptor frees it.

    Raises AuditBrokenError if another process holds it, and OSError.
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
    """Read the newest file of a log, save a torn last line in a file beside it, and find where to go on.

    Raises AuditBrokenError if the file's records do not form a chain, and OSError.
    """
    active = directory / ACTIVE
    closed = closed_files(directory)
    scan = _scan(active, key) if active.exists() else _Scan(None, BEGINNING, 0, b"")
    head, before = scan.head, closed[-1].last if closed else 0
    if scan.first is None:
        head = _closed_head(closed[-1].path, key) if closed else BEGINNING
        before = head.seq
    elif scan.first.link.seq != before + 1:
        raise _broken(active, 1, f"it begins with record {scan.first.link.seq}, not {before + 1}")
    elif not closed and not scan.first.follows(BEGINNING):
        raise _broken(active, 1, "the first record of all names one before it")
    file = ActiveFile(directory, disk, scan.size, before + 1, head.seq)
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
    """Write the torn bytes to a file of their own before they are cut off; returns its name."""
    name = f"audit.torn-{time.time_ns()}"
    path = directory / name
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        disk.write_all(descriptor, torn)
        disk.fsync(descriptor)
    finally:
        os.close(descriptor)
    disk.sync_directory(directory)
    return name


def _broken(path: Path, line: int, problem: str) -> AuditBrokenError:
    place = f"{path}:{line}" if line else str(path)
    return AuditBrokenError(
        f"{place}: {problem}. The log is not continued; look at it with `saegis audit verify {path.parent}`, "
        "move its files away to keep them, and start again"
    )
