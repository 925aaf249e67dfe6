"""The files of the audit log: their names, and the one that is written now."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from saegis_server.audit.disk import Disk
from saegis_server.audit.errors import AuditUnavailableError

#: The file that is written now; closed ones are `audit-<first record>-<last record>.jsonl`.
ACTIVE = "audit.jsonl"
_CLOSED = re.compile(r"audit-(\d{12,})-(\d{12,})\.jsonl\Z")


@dataclass(frozen=True, slots=True, order=True)
class ClosedFile:
    """A closed file: the numbers of its first and last record, as its name says."""

    first: int
    last: int
    path: Path


def closed_files(directory: Path) -> list[ClosedFile]:
    """The closed files of a log, oldest first."""
    found = [(_CLOSED.match(path.name), path) for path in directory.iterdir()]
    return sorted(ClosedFile(int(name[1]), int(name[2]), path) for name, path in found if name)


def log_files(directory: Path) -> list[Path]:
    """All files of a log, oldest first, the active one last."""
    active = directory / ACTIVE
    return [each.path for each in closed_files(directory)] + ([active] if active.exists() else [])


class ActiveFile:
    """The file that is written now. `size`: bytes that count; `last`: the newest record that it or its
    predecessors hold; `first`: its own first record, or that to come.

    What a failed write left behind is cut off before the next one. Used by one thread. Methods raise OSError,
    and AuditUnavailableError where somebody else moved or changed the file.
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
        """Write whole lines, of which `last` is the last record, with one write where the system lets it."""
        descriptor = self._open()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[self._disk.write(descriptor, bytes(rest)) :]
            if sync:
                self._disk.fsync(descriptor)
        except OSError:
            # At once where that goes: the process may end before the next write.
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
        """Close the file under its lasting name and begin a new one."""
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
        """Let go of the file; the next use opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        """The descriptor of a file that holds exactly what counts."""
        if self._descriptor is not None:
            self._check_untouched(self._descriptor)
            return self._descriptor
        # A file that should hold records is never made anew: it would begin in the middle of the chain.
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
