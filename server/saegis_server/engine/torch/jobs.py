"""Jobs: what the engine does with the model between two steps, a piece at a time."""

from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

from saegis_server.engine.torch.memory import own_failure
from saegis_server.fair import FairQueue

T = TypeVar("T")
#: Yields after each piece but the last, and returns its result.
Job = Generator[None, None, T]
#: Told how a job has ended; must not raise.
Ended = Callable[[BaseException | None], None]


def _told(error: Exception) -> Exception:
    """What is said of a failure: that there was no memory, or the failure itself."""
    try:
        return own_failure(error)
    except Exception:
        return error


@dataclass(eq=False, slots=True)
class _Queued:
    """A job that waits or has begun: whose it is, who waits for its result, who hears that it has ended."""

    job: Job[Any]
    tenant: str
    result: Future[Any]
    ended: Ended | None

    def end(self, error: BaseException | None, value: object = None) -> None:
        """Let go of the job, and tell how it ended to those who still want to know."""
        self.job.close()
        wanted = self.result.set_running_or_notify_cancel()
        if self.ended is not None:
            self.ended(error if wanted else CancelledError())
        if wanted and error is None:
            self.result.set_result(value)
        elif wanted:
            self.result.set_exception(error)


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

    def add(self, job: Job[T], tenant: str = "", ended: Ended | None = None) -> "Future[T]":
        """Queue a job; cancelling the future ends it before its next piece.

        `ended` hears why it has ended, before the future tells: nothing, an error, or a CancelledError.
        """
        queued = _Queued(job, tenant, Future(), ended)
        with self._lock:
            self._waiting.append(queued)
        return queued.result

    def advance(self) -> None:
        """Do one piece of the job that is begun, or of the next that somebody still wants, if any."""
        while (queued := self._begun()) is not None:
            if queued.result.cancelled():
                self._end(queued, CancelledError())
                continue
            try:
                next(queued.job)
            except StopIteration as end:
                self._end(queued, None, end.value)
            except Exception as error:
                self._end(queued, _told(error))
            return

    def _begun(self) -> _Queued | None:
        with self._lock:
            if self._current is None and self._waiting:
                self._current = self._waiting.pop(self._waiting.owners[0])
            return self._current

    def _end(self, queued: _Queued, error: BaseException | None, value: object = None) -> None:
        self._current = None
        queued.end(error, value)

    def drop_cancelled(self) -> None:
        """Forget the jobs that nobody wants any more."""
        with self._lock:
            dropped = [queued for queued in self._waiting if queued.result.cancelled()]
            for queued in dropped:
                self._waiting.remove(queued)
        for queued in dropped:
            queued.end(CancelledError())

    def fail(self, error: Exception) -> None:
        """End every job with an error."""
        while (queued := self._begun()) is not None:
            self._end(queued, error)
