"""The writing of the audit log: what waits is chained, written and forced to the disk together."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from saegis_server.audit.chain import Link, read_line, seal
from saegis_server.audit.choices import Fsync
from saegis_server.audit.disk import Disk
from saegis_server.audit.files import ClosedFile, closed_files, log_files
from saegis_server.audit.records import DeletionRecord, PlainJson
from saegis_server.audit.repair import Opened
from saegis_server.audit.settings import AuditSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pending:
    """A record that waits to be written, and the future that is told its place in the chain."""

    payload: Mapping[str, PlainJson]
    future: Future[Link] = field(default_factory=Future)

    @property
    def kind(self) -> str:
        return str(self.payload["kind"])


class Writer:
    """Writes records to the files of an open log. Used by one thread; `head` may be read by any."""

    def __init__(self, settings: AuditSettings, key: bytes | None, opened: Opened, disk: Disk) -> None:
        self.head = opened.head
        self._settings = settings
        self._key = key
        self._file = opened.file
        self._disk = disk
        self._is_synced_at = time.monotonic()
        self._is_dirty = False
        # Files beyond `keep` may also be left from before, under another setting.
        self._has_rotated = True

    def write(self, waiting: deque[Pending]) -> list[tuple[Pending, Link]]:
        """Write as much of what waits, in order, as one file has room for, and take it from `waiting`.

        Returns what is now on the disk, as `fsync` says, with its places; the caller resolves the futures.
        Raises OSError and AuditUnavailableError; then nothing was written.
        """
        lines, links = self._fill(waiting)
        if not lines:
            self._file.rotate(sync=self._settings.fsync is not Fsync.NEVER)
            self._is_dirty = False
            self._has_rotated = True
            logger.info("audit log: a new file begins after record %d, %s", self.head.seq, self.head.hash)
            lines, links = self._fill(waiting)
        always = self._settings.fsync is Fsync.ALWAYS
        self._file.append(b"".join(lines), links[-1].seq, sync=always)
        self._is_dirty = not always
        self.head = links[-1]
        return [(waiting.popleft(), link) for link in links]

    def seconds_until_sync(self) -> float | None:
        """How long what was written may stay unforced; None where there is nothing to force."""
        if self._settings.fsync is not Fsync.INTERVAL or not self._is_dirty:
            return None
        return max(0.0, self._is_synced_at + self._settings.interval_seconds - time.monotonic())

    def sync_if_due(self) -> None:
        """Force to the disk what waited long enough for it. Raises as `write` does."""
        if self.seconds_until_sync() == 0.0:
            self.sync()

    def sync(self) -> None:
        """Force everything written to the disk. Raises as `write` does."""
        self._is_synced_at = time.monotonic()
        self._file.sync()
        self._is_dirty = False

    def close(self) -> None:
        """Force what was written to the disk, unless set otherwise, and let go of the file. Raises so too."""
        try:
            if self._is_dirty and self._settings.fsync is not Fsync.NEVER:
                self.sync()
        finally:
            self._file.close()

    def deletion(self) -> tuple[list[ClosedFile], DeletionRecord] | None:
        """The files that are to be deleted now and the record to write before that, if any.

        Raises OSError, and UnreadableLineError where what stays does not begin with a record.
        """
        keep, due = self._settings.keep, self._has_rotated
        self._has_rotated = False
        if keep is None or not due:
            return None
        directory = self._settings.directory
        old = closed_files(directory)[:-keep]
        if not old:
            return None
        stays = log_files(directory)[len(old)]
        with stays.open("rb") as file:
            first = read_line(file.readline(), self._key)
        names = tuple(each.path.name for each in old)
        return old, DeletionRecord(files=names, first=first.link.seq, after=first.prev)

    def delete(self, files: list[ClosedFile]) -> None:
        """Delete closed files, once the record of it is on the disk. Raises as `write` does."""
        if self._settings.fsync is not Fsync.NEVER:
            self.sync()
        for each in files:
            self._disk.remove(each.path)
        self._disk.sync_directory(self._settings.directory)

    def _fill(self, waiting: deque[Pending]) -> tuple[list[bytes], list[Link]]:
        """The lines of as many records as the file still has room for, and their places in the chain."""
        lines: list[bytes] = []
        links: list[Link] = []
        size = self._file.size
        for each in waiting:
            line, link = seal(each.payload, links[-1] if links else self.head, self._key)
            # A record that is larger than a whole file gets one of its own.
            if size and size + len(line) > self._settings.max_bytes:
                break
            lines.append(line)
            links.append(link)
            size += len(line)
        return lines, links
