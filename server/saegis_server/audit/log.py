"""The audit log: a thread writes records in the order in which they come, and reports when they are safe."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from saegis_server.audit import AuditUnavailableError, Fsync, OnFailure
from saegis_server.audit.chain import Link, UnreadableLineError, read_key, read_line, seal
from saegis_server.audit.files import ClosedFile, Disk, Opened, closed_files, lock, log_files, open_log
from saegis_server.audit.records import (
    AuditRecord,
    DeletionRecord,
    IdentityRecord,
    LostRecord,
    PlainJson,
    StartRecord,
    StopRecord,
    check_pointer,
    mask,
    payload,
)

logger = logging.getLogger(__name__)
Place = TypeVar("Place", Link, Link | None)
#: How often, in seconds, writing is tried again after a failure while no record comes.
RETRY_SECONDS = 1.0


class AuditSettings(BaseModel):
    """The audit log's part of the configuration.

    directory: made with mode 0700 if missing; it belongs to one server. interval_seconds: for `fsync:
    interval`. max_bytes: a file that would grow beyond it is closed and a new one begun; a single record may
    be larger. keep: how many closed files stay; None means all. prompts: whether the text of prompts is
    written. mask: JSON pointers (RFC 6901; a part "*" means every item) into a record, such as
    "/edits/*/label", whose values are replaced. key_file: with it the chain is keyed, and nobody can forge it
    without the key. queue: how many records may wait to be written. identity_per_minute: how many failed
    authentications are written in a minute; 0 means none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    fsync: Fsync = Fsync.ALWAYS
    interval_seconds: Annotated[float, Field(gt=0.0, le=3600.0)] = 1.0
    max_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**20
    keep: Annotated[int, Field(ge=1)] | None = None
    on_failure: OnFailure = OnFailure.REFUSE
    prompts: bool = False
    mask: tuple[str, ...] = ()
    key_file: Path | None = None
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    identity_per_minute: Annotated[int, Field(ge=0)] = 60

    @field_validator("mask")
    @classmethod
    def _are_pointers(cls, mask: tuple[str, ...]) -> tuple[str, ...]:
        for pointer in mask:
            check_pointer(pointer)
        return mask


@dataclass(frozen=True, slots=True)
class Pending:
    """A record that waits to be written, and the future that gets its place in the chain."""

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
        # True at the start too: another setting may have left more files than `keep`.
        self._has_rotated = True

    def write(self, waiting: deque[Pending]) -> list[tuple[Pending, Link]]:
        """Write as many waiting records, in order, as one file has room for, and take them from `waiting`.

        Returns the records written, forced to the disk if `fsync` says so, with their places. The caller
        resolves the futures.
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
        """Seconds until what was written must be forced to the disk; None if there is nothing to force."""
        if self._settings.fsync is not Fsync.INTERVAL or not self._is_dirty:
            return None
        return max(0.0, self._is_synced_at + self._settings.interval_seconds - time.monotonic())

    def sync_if_due(self) -> None:
        """Force what was written to the disk if the interval is over. Raises the same as `write`."""
        if self.seconds_until_sync() == 0.0:
            self.sync()

    def sync(self) -> None:
        """Force everything written to the disk. Raises the same as `write`."""
        self._is_synced_at = time.monotonic()
        self._file.sync()
        self._is_dirty = False

    def close(self) -> None:
        """Force what was written to the disk, unless `fsync` is never, and close. Raises as `write` does."""
        try:
            if self._is_dirty and self._settings.fsync is not Fsync.NEVER:
                self.sync()
        finally:
            self._file.close()

    def deletion(self) -> tuple[list[ClosedFile], DeletionRecord] | None:
        """The files to delete now and the record to write before that; None if there are none.

        Raises OSError, and UnreadableLineError if the oldest file that stays does not begin with a record.
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
        names = tuple(file.path.name for file in old)
        return old, DeletionRecord(files=names, first=first.link.seq, after=first.prev)

    def delete(self, files: list[ClosedFile]) -> None:
        """Force the record of it to the disk, then delete closed files. Raises the same as `write`."""
        if self._settings.fsync is not Fsync.NEVER:
            self.sync()
        for file in files:
            self._disk.remove(file.path)
        self._disk.sync_directory(self._settings.directory)

    def _fill(self, waiting: deque[Pending]) -> tuple[list[bytes], list[Link]]:
        """The lines of as many waiting records as the file has room for, and their places in the chain."""
        lines: list[bytes] = []
        links: list[Link] = []
        size = self._file.size
        for pending in waiting:
            line, link = seal(pending.payload, links[-1] if links else self.head, self._key)
            # A record that is larger than a whole file gets a file of its own.
            if size and size + len(line) > self._settings.max_bytes:
                break
            lines.append(line)
            links.append(link)
            size += len(line)
        return lines, links


class AuditObserver(Protocol):
    """Counts what the log does. Any thread may call it."""

    def count_audit_record(self, kind: str) -> None: ...
    def count_audit_error(self) -> None: ...


class AuditLog:
    """An open audit log, held by this process alone. Safe to use from any thread.

    Opening it repairs a torn last line and writes a start record. Raises AuditBrokenError for a log that must
    not be continued, AuditKeyError, and AuditUnavailableError if it cannot be written.
    """

    def __init__(
        self, settings: AuditSettings, observer: AuditObserver | None = None, disk: Disk | None = None
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._waiting: deque[Pending] = deque()
        self._changed = threading.Condition()
        self._is_closing = self._is_closed = False
        self._lost, self._reason = 0, ""
        self._is_failing = False
        key, disk = read_key(settings.key_file), disk or Disk()
        try:
            self._lock = lock(settings.directory)
            try:
                opened = open_log(settings.directory, key, disk)
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise _unavailable(error) from error
        self._writer = Writer(settings, key, opened, disk)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()
        try:
            self._begin(opened.repair, keyed=key is not None)
        except BaseException:
            self._end()
            raise

    @property
    def head(self) -> Link:
        """The newest written record. Noted elsewhere, it shows whether the log's end was cut off."""
        return self._writer.head

    @property
    def writes_prompts(self) -> bool:
        """Whether the text of prompts is to be recorded."""
        return self._settings.prompts

    @property
    def waiting(self) -> int:
        """How many records wait to be written."""
        return len(self._waiting)

    @property
    def is_failing(self) -> bool:
        """Whether the last record could not be written. The log tries again by itself."""
        return self._is_failing

    @property
    def refuses(self) -> bool:
        """Whether requests that need a record are refused now."""
        return self._is_failing and self._settings.on_failure is OnFailure.REFUSE

    @property
    def directory(self) -> Path:
        """Where its files lie."""
        return self._settings.directory

    def append(self, record: AuditRecord) -> Future[Link]:
        """Queue a record. The future gets its place once it is written, and forced to the disk if so set.

        The future fails with AuditUnavailableError if the record could not be written; the part of it that
        reached the file is cut off before the next one. Raises ValueError for what has no form in JSON.
        """
        pending = self._pending(record)
        with self._changed:
            if self._is_closing:
                problem = "it is closed"
            elif len(self._waiting) >= self._settings.queue:
                problem = f"{len(self._waiting)} records wait already"
            else:
                self._waiting.append(pending)
                self._changed.notify()
                return pending.future
        self._refuse([pending], AuditUnavailableError(f"the audit log cannot be written: {problem}"))
        return pending.future

    async def require(self, record: AuditRecord) -> Link | None:
        """Write a record that must be in the log before what it records goes on; returns its place.

        If it cannot be written: raises AuditUnavailableError with `on_failure: refuse`, returns None with
        `continue`.
        """
        return await self.written(self.append(record))

    async def written(self, record: Future[Place]) -> Place | None:
        """Wait for an appended record, as `require` does."""
        try:
            return await asyncio.wrap_future(record)
        except AuditUnavailableError:
            if self._settings.on_failure is OnFailure.REFUSE:
                raise
            return None

    def require_blocking(self, record: AuditRecord) -> Link | None:
        """Like `require`, for threads that may block."""
        try:
            return self.append(record).result()
        except AuditUnavailableError:
            if self._settings.on_failure is OnFailure.REFUSE:
                raise
            return None

    def close(self) -> None:
        """Write what waits and a stop record, and release the directory. A second call does nothing."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
        last = self.append(StopRecord(process=os.getpid()))
        self._end()
        if last.exception() is not None:
            logger.error("audit log: closed without its last record: %s", last.exception())
        logger.info("audit log: closed after record %d, %s", self.head.seq, self.head.hash)

    def _begin(self, repair: AuditRecord | None, keyed: bool) -> None:
        if repair is not None:
            logger.warning("audit log: a torn last line was cut off: %s", repair)
            self.append(repair).result()
        from saegis.version import __version__  # Here, since it brings the client and gRPC with it.

        start = StartRecord(
            version=__version__,
            process=os.getpid(),
            chain="hmac-sha256" if keyed else "sha256",
            fsync=self._settings.fsync.value,
            prompts=self._settings.prompts,
        )
        place = self.append(start).result()
        logger.info("audit log: opened with record %d, %s", place.seq, place.hash)

    def _end(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        os.close(self._lock)

    def _run(self) -> None:
        while batch := self._take():
            self._write(batch)
            with self._errors_counted():
                self._writer.sync_if_due()
            with self._errors_counted():
                self._delete_old()
        with self._errors_counted():
            self._writer.close()

    def _take(self) -> deque[Pending]:
        """All waiting records, at least one; none once the log is closed."""
        while True:
            with self._changed:
                due = self._writer.seconds_until_sync()
                if self._is_failing:
                    due = RETRY_SECONDS if due is None else min(RETRY_SECONDS, due)
                self._changed.wait_for(lambda: self._waiting or self._is_closing, due)
                batch, self._waiting = self._waiting, deque()
                if batch or self._is_closing:
                    return batch
            if self._is_failing:
                # While it fails, requests are refused and bring no records, so it must try by itself.
                self._write(deque())
            with self._errors_counted():
                self._writer.sync_if_due()

    def _write(self, batch: deque[Pending]) -> None:
        """Write a batch and resolve its futures. No error ends the thread."""
        lost = self._lost
        try:
            if lost:
                batch.appendleft(self._pending(LostRecord(records=lost, reason=self._reason)))
            while batch:
                written = self._writer.write(batch)
                self._is_failing = False
                for pending, place in written:
                    if pending.kind == LostRecord.kind:
                        self._recover(lost)
                    self._acknowledge(pending, place)
        except Exception as error:
            self._is_failing = True
            if not isinstance(error, OSError | AuditUnavailableError):
                logger.exception("audit log: the writer failed")
            self._refuse(batch, _unavailable(error))

    def _delete_old(self) -> None:
        due = self._writer.deletion()
        if due is None:
            return
        files, record = due
        pending = self._pending(record)
        self._write(deque([pending]))
        if pending.future.exception() is None:
            self._writer.delete(files)

    def _pending(self, record: AuditRecord) -> Pending:
        fields = payload(record, self._settings.prompts)
        if masked := mask(fields, self._settings.mask):
            fields["masked"] = [*masked]
        fields["time"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        pending = Pending(fields)
        # Even if nobody waits for the record any more, it is written.
        pending.future.set_running_or_notify_cancel()
        return pending

    def _acknowledge(self, pending: Pending, place: Link) -> None:
        pending.future.set_result(place)
        if self._observer is not None:
            self._observer.count_audit_record(pending.kind)

    def _refuse(self, refused: Collection[Pending], error: AuditUnavailableError) -> None:
        """Fail the futures of records that are not in the log."""
        own = sum(pending.kind == LostRecord.kind for pending in refused)
        with self._changed:
            self._lost += len(refused) - own
        self._count_errors(len(refused) - own, error)
        for pending in refused:
            pending.future.set_exception(error)

    def _recover(self, lost: int) -> None:
        with self._changed:
            self._lost -= lost
        logger.warning("audit log: it can be written again; %d records were lost", lost)

    @contextmanager
    def _errors_counted(self) -> Iterator[None]:
        try:
            yield
        except (OSError, AuditUnavailableError, UnreadableLineError) as error:
            self._count_errors(1, _unavailable(error))

    def _count_errors(self, number: int, error: AuditUnavailableError) -> None:
        # File names may hold bytes that are not UTF-8.
        reason = str(error).encode(errors="replace").decode()
        if reason != self._reason:
            logger.error("%s", reason)
        self._reason = reason
        if self._observer is not None:
            for _ in range(number):
                self._observer.count_audit_error()


class IdentityFailures:
    """Writes at most `per_minute` records in any minute. The next one written counts those left out.

    Nobody waits for these records. Safe to use from any thread.
    """

    def __init__(self, log: AuditLog, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens, self._at = float(per_minute), clock()
        self._suppressed = 0

    def record(self, method: str, peer: str, reason: str) -> None:
        """Record that the caller of `method` at `peer` could not be authenticated."""
        with self._lock:
            now = self._clock()
            refill = (now - self._at) * self._per_minute / 60.0
            self._tokens, self._at = min(float(self._per_minute), self._tokens + refill), now
            if self._tokens < 1.0:
                self._suppressed += 1
                return
            self._tokens -= 1.0
            suppressed, self._suppressed = self._suppressed, 0
        self._log.append(IdentityRecord(method=method, peer=peer, reason=reason, suppressed=suppressed))


def _unavailable(error: Exception) -> AuditUnavailableError:
    if isinstance(error, AuditUnavailableError):
        return error
    return AuditUnavailableError(f"the audit log cannot be written: {error}")
