"""Jobs: what the engine does with the model between two steps, a piece at a time."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, TypeVar

from saegis_server.engine.memory import own_failure

T = TypeVar("T")
#: Yields after each piece but the last, and returns its result.
Job = Generator[None, None, T]


#: Told how a job has ended, on the thread that does the jobs; must not raise.
Ended = Callable[[BaseException | None], None]


class _Waiting(NamedTuple):
    """A job that waits or has begun, who waits for its result, and who hears that it has ended."""

    job: Job[Any]
    result: "Future[Any]"
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


def at_once(work: Callable[[], T]) -> Job[T]:
    """A job of a single piece."""
    yield from ()
    return work()


def _told(error: Exception) -> Exception:
    """What is said of a failure: that there was no memory, or the failure itself."""
    try:
        return own_failure(error)
    except Exception:
        return error


class Jobs:
    """Jobs in the order of their arrival; the oldest is finished before the next one begins.

    `add` may be called from any thread, all else by one thread only.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job[T], ended: Ended | None = None) -> "Future[T]":
        """Queue a job; cancelling the future ends it before its next piece.

        `ended` hears why it has ended, before the future tells: nothing, an error, or a CancelledError.
        """
        result: Future[T] = Future()
        self._waiting.append(_Waiting(job, result, ended))
        return result

    def advance(self) -> None:
        """Do one piece of the oldest job that somebody still wants, if there is any."""
        while self._waiting:
            first = self._waiting[0]
            if first.result.cancelled():
                self._waiting.popleft().end(CancelledError())
                continue
            try:
                next(first.job)
            except StopIteration as end:
                self._waiting.popleft().end(None, end.value)
            except Exception as error:
                self._waiting.popleft().end(_told(error))
            return

    def fail(self, error: Exception) -> None:
        """End every job with an error."""
        while self._waiting:
            self._waiting.popleft().end(error)
