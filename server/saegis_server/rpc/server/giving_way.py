"""Giving way: heavy work leaves processors and Python's lock to the engine's steps while requests run."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

from saegis_server.rpc.server.threads import stop_if_unwanted

P = ParamSpec("P")
T = TypeVar("T")
#: While requests run, work rests so many times as long as it has computed, but not longer than so, in
#: seconds: then most steps meet none of it.
REST, LONGEST_REST = 4.0, 0.25


def _nothing_runs() -> bool:
    return False


_requests_run: ContextVar[Callable[[], bool]] = ContextVar("requests_run", default=_nothing_runs)


def giving_way(
    function: Callable[P, T], requests_run: Callable[[], bool], shares_processors: bool
) -> Callable[P, T]:
    """A function, to be run in a thread of its own, as work that gives way; see `paced`.

    requests_run: whether any do now. shares_processors: whether the engine computes on the CPU. Then work
    that begins while requests run computes in one thread alone: beside a second team of OpenMP's threads,
    those of the engine would sleep between all of its regions; see threads.py.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        _requests_run.set(requests_run)
        if not (shares_processors and requests_run()):
            return function(*args, **kwargs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
        finally:
            # With as many every later thread begins.
            torch.set_num_threads(threads)

    return run


def must_give_way() -> bool:
    """Whether this thread's work gives way and requests run."""
    return _requests_run.get()()


def paced(parts: Iterable[T]) -> Iterator[T]:
    """The parts of long work, with a rest after each while requests run that it gives way to.

    Raises UnwantedError once nobody waits for the result.
    """
    for part in parts:
        stop_if_unwanted()
        began = time.thread_time()
        yield part
        if must_give_way():
            time.sleep(min(REST * (time.thread_time() - began), LONGEST_REST))
