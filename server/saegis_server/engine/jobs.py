"""Jobs: what the engine does with the model between two steps, a piece at a time."""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from saegis_server.engine.fair import FairQueue

T = TypeVar("T")
#: Yields after each piece but the last, and returns its result.
Job = Generator[None, None, T]


def at_once(work: Callable[[], T]) -> Job[T]:
    """A job of a single piece."""
    yield from ()
    return work()


@dataclass(eq=False, slots=True)
class _Queued:
    """A job, whose it is, and who waits for it."""

    job: Job[Any]
    tenant: str
    result: Future[Any]


class Jobs:
    """Jobs in the order of their arrival for each tenant, the tenants in turn.

    One is finished before the next begins. `advance` and `fail` may be called by one thread only.
    """

    def __init__(self) -> None:
        self._waiting: FairQueue[_Queued] = FairQueue(lambda queued: queued.tenant)
        self._current: _Queued | None = None
        self._lock = Lock()

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting) + (self._current is not None)

    def count(self, tenant: str) -> int:
        """How many jobs of a tenant wait."""
        with self._lock:
            return self._waiting.count(tenant)

    def add(self, job: Job[T], tenant: str = "") -> "Future[T]":
        """Queue a job; cancelling the future ends it before its next piece."""
        queued = _Queued(job, tenant, Future())
        with self._lock:
            self._waiting.append(queued)
        return queued.result

    def advance(self) -> None:
        """Do one piece of the job that is begun, or of the next that somebody still wants, if any."""
        while (queued := self._begun()) is not None:
            if queued.result.cancelled():
                queued.job.close()
                self._current = None
                continue
            try:
                next(queued.job)
            except StopIteration as end:
                self._current = None
                if queued.result.set_running_or_notify_cancel():
                    queued.result.set_result(end.value)
            except Exception as error:
                self._current = None
                if queued.result.set_running_or_notify_cancel():
                    queued.result.set_exception(error)
            return

    def _begun(self) -> _Queued | None:
        with self._lock:
            if self._current is None and self._waiting:
                self._current = self._waiting.pop(self._waiting.owners[0])
            return self._current

    def drop_cancelled(self) -> None:
        """Forget the jobs that nobody wants any more."""
        with self._lock:
            for queued in [each for each in self._waiting if each.result.cancelled()]:
                self._waiting.remove(queued)
                queued.job.close()

    def fail(self, error: Exception) -> None:
        """End every job with an error."""
        while (queued := self._begun()) is not None:
            self._current = None
            queued.job.close()
            if queued.result.set_running_or_notify_cancel():
                queued.result.set_exception(error)
