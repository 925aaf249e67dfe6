"""The audit log: a thread writes records in the order in which they come, and tells when they are safe."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from saegis_server import __version__
from saegis_server.audit import repair as audit_repair
from saegis_server.audit.chain import Link, UnreadableLineError
from saegis_server.audit.choices import OnFailure
from saegis_server.audit.disk import Disk
from saegis_server.audit.errors import AuditUnavailableError
from saegis_server.audit.mask import mask
from saegis_server.audit.records import AuditRecord, LostRecord, StartRecord, StopRecord, payload
from saegis_server.audit.settings import AuditSettings, read_key
from saegis_server.audit.writer import Pending, Writer

logger = logging.getLogger(__name__)
Place = TypeVar("Place", Link, Link | None)
#: How often a log that cannot be written is tried again where nobody asks for it.
RETRY_SECONDS = 1.0


class AuditObserver(Protocol):
    """Who counts what the log does; called by any thread."""

    def count_audit_record(self, kind: str) -> None: ...
    def count_audit_error(self) -> None: ...


class AuditLog:
    """An open audit log, held by this process alone. Safe to use from any thread.

    Opening it repairs a torn last line and writes the record of the start. Raises AuditBrokenError for a log
    that must not be continued, AuditKeyError, and AuditUnavailableError where it cannot be written.
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
            self._lock = audit_repair.lock(settings.directory)
        except OSError as error:
            raise _unavailable(error) from error
        try:
            opened = audit_repair.open_log(settings.directory, key, disk)
            self._writer = Writer(settings, key, opened, disk)
        except OSError as error:
            os.close(self._lock)
            raise _unavailable(error) from error
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()
        try:
            self._begin(opened.repair, keyed=key is not None)
        except BaseException:
            self._end()
            raise

    @property
    def head(self) -> Link:
        """The newest record that is written. Noted elsewhere, it shows whether the log's end was cut off."""
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
        """Whether the last record could not be written; it tries again by itself."""
        return self._is_failing

    @property
    def refuses(self) -> bool:
        """Whether what needs a record is refused now."""
        return self._is_failing and self._settings.on_failure is OnFailure.REFUSE

    @property
    def directory(self) -> Path:
        """Where its files lie."""
        return self._settings.directory

    def append(self, record: AuditRecord) -> Future[Link]:
        """Queue a record; the future is told its place once it is written, and forced to the disk if so set.

        The future fails with AuditUnavailableError where the record could not be written; what of it did
        reach the file is cut off before the next. Raises ValueError for what has no form in JSON.
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
        """Write a record that must be in the log before what it tells goes on; returns its place.

        Where it cannot be written: raises AuditUnavailableError with `on_failure: refuse`, returns None with
        `continue`.
        """
        return await self.written(self.append(record))

    async def written(self, record: Future[Place]) -> Place | None:
        """Wait for a record that was appended, as `require` does."""
        try:
            return await asyncio.wrap_future(record)
        except AuditUnavailableError:
            if self._settings.on_failure is OnFailure.REFUSE:
                raise
            return None

    def require_blocking(self, record: AuditRecord) -> Link | None:
        """As `require`, for threads that may wait."""
        try:
            return self.append(record).result()
        except AuditUnavailableError:
            if self._settings.on_failure is OnFailure.REFUSE:
                raise
            return None

    def close(self) -> None:
        """Write what waits and the record of the stop, and let go of the directory. Twice is once."""
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
            self._sync()
            self._delete_old()
        try:
            self._writer.close()
        except (OSError, AuditUnavailableError) as error:
            self._count_errors(1, _unavailable(error))

    def _take(self) -> deque[Pending]:
        """Everything that waits, at least one record; none once the log is closed."""
        while True:
            with self._changed:
                due = self._writer.seconds_until_sync()
                if self._is_failing:
                    due = min(RETRY_SECONDS, RETRY_SECONDS if due is None else due)
                self._changed.wait_for(lambda: self._waiting or self._is_closing, due)
                batch, self._waiting = self._waiting, deque()
                if batch or self._is_closing:
                    return batch
            if self._is_failing:
                # Those who would ask are sent elsewhere while it fails: it must find out by itself.
                self._write(deque())
            self._sync()

    def _sync(self) -> None:
        try:
            self._writer.sync_if_due()
        except (OSError, AuditUnavailableError) as error:
            self._count_errors(1, _unavailable(error))

    def _write(self, batch: deque[Pending]) -> None:
        """Write a batch and resolve its futures; nothing that goes wrong ends the thread."""
        lost = self._lost
        try:
            if lost:
                batch.appendleft(self._pending(LostRecord(records=lost, reason=self._reason)))
            while batch:
                written = self._writer.write(batch)
                self._is_failing = False
                for each, place in written:
                    if each.kind == LostRecord.kind:
                        self._recover(lost)
                    self._acknowledge(each, place)
        except (OSError, AuditUnavailableError) as error:
            self._is_failing = True
            self._refuse(batch, _unavailable(error))
        except Exception as error:
            self._is_failing = True
            logger.exception("audit log: the writer failed")
            self._refuse(batch, _unavailable(error))

    def _delete_old(self) -> None:
        try:
            due = self._writer.deletion()
            if due is None:
                return
            files, record = due
            pending = self._pending(record)
            self._write(deque([pending]))
            if pending.future.exception() is None:
                self._writer.delete(files)
        except (OSError, AuditUnavailableError, UnreadableLineError) as error:
            self._count_errors(1, _unavailable(error))

    def _pending(self, record: AuditRecord) -> Pending:
        found = payload(record, self._settings.prompts)
        if masked := mask(found, self._settings.mask):
            found["masked"] = [*masked]
        found["time"] = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        pending = Pending(found)
        # Who waits may give up waiting; the record is written all the same.
        pending.future.set_running_or_notify_cancel()
        return pending

    def _acknowledge(self, pending: Pending, place: Link) -> None:
        pending.future.set_result(place)
        if self._observer is not None:
            self._observer.count_audit_record(pending.kind)

    def _refuse(self, refused: Collection[Pending], error: AuditUnavailableError) -> None:
        """Tell who waits that their records are not in the log."""
        own = sum(each.kind == LostRecord.kind for each in refused)
        with self._changed:
            self._lost += len(refused) - own
        self._count_errors(len(refused) - own, error)
        for each in refused:
            each.future.set_exception(error)

    def _recover(self, lost: int) -> None:
        with self._changed:
            self._lost -= lost
        logger.warning("audit log: it can be written again; %d records were lost", lost)

    def _count_errors(self, number: int, error: AuditUnavailableError) -> None:
        # Names of files may hold what has no form in UTF-8.
        reason = str(error).encode(errors="replace").decode()
        if reason != self._reason:
            logger.error("%s", reason)
        self._reason = reason
        if self._observer is not None:
            for _ in range(number):
                self._observer.count_audit_error()


def _unavailable(error: Exception) -> AuditUnavailableError:
    if isinstance(error, AuditUnavailableError):
        return error
    return AuditUnavailableError(f"the audit log cannot be written: {error}")
