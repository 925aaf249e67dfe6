"""Jobs: what the engine does with the model between two steps, a piece at a time."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from saegis_server.engine.memory import own_failure

T = TypeVar("T")
#: Yields after each piece but the last, and returns its result.
Job = Generator[None, None, T]


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
        self._waiting: deque[tuple[Job[Any], Future[Any]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job[T]) -> "Future[T]":
        """Queue a job; cancelling the future ends it before its next piece."""
        result: Future[T] = Future()
        self._waiting.append((job, result))
        return result

    def advance(self) -> None:
        """Do one piece of the oldest job that somebody still wants, if there is any."""
        while self._waiting:
            job, result = self._waiting[0]
            if result.cancelled():
                self._waiting.popleft()
                job.close()
                continue
            try:
                next(job)
            except StopIteration as end:
                self._waiting.popleft()
                if result.set_running_or_notify_cancel():
                    result.set_result(end.value)
            except Exception as error:
                self._waiting.popleft()
                if result.set_running_or_notify_cancel():
                    result.set_exception(_told(error))
            return

    def fail(self, error: Exception) -> None:
        """End every job with an error."""
        while self._waiting:
            job, result = self._waiting.popleft()
            job.close()
            if result.set_running_or_notify_cancel():
                result.set_exception(error)
