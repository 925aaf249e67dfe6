"""Threads: work off the event loop, in threads that end with it.

OpenMP keeps a team of threads for each thread that ever ran a parallel region. Once there are more of them
than cores it lets them all sleep between regions, and the engine's steps then take a third longer. A thread
that ends takes its team with it, so nothing that computes runs in a pool.
"""

import asyncio
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(function: Callable[[], T]) -> T:
    """Run what takes long in a thread of its own, which does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(set_result: Callable[[], None]) -> None:
        if not done.cancelled():
            set_result()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            failure = error
            loop.call_soon_threadsafe(finish, lambda: done.set_exception(failure))
        else:
            loop.call_soon_threadsafe(finish, lambda: done.set_result(result))

    Thread(target=run, name="saegis-work", daemon=True).start()
    return await done
