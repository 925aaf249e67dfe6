"""The watchdog: a thread that checks regularly whether the event loop still answers."""

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

log = logging.getLogger("saegis.rpc")
#: How often it checks.
_PERIOD_SECONDS = 0.05
#: After this many times `stall_seconds` without an answer the process ends.
ENDS_AFTER = 6
#: The exit status of a process whose loop is stuck: EX_SOFTWARE, an internal error, of sysexits.h.
STUCK_STATUS = 70


class Watchdog:
    """Measures how long the event loop takes to answer, and detects when it is stuck.

    It counts its own turns instead of time, so that a stopped process or a suspended machine does not count
    as stuck. Must be made on the loop.
    """

    def __init__(self, observe: Callable[[float], None], stall_seconds: float) -> None:
        """`observe` is called with every waiting time, in seconds.

        After `stall_seconds` without an answer the loop is not live, and after ENDS_AFTER times as long the
        process ends; 0 turns both off.
        """
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._observe = observe
        self._stall_seconds = stall_seconds
        self._closing = threading.Event()
        self._is_live = True
        self._thread = threading.Thread(target=self._run, name="saegis-watchdog", daemon=True)
        self._thread.start()

    @property
    def is_live(self) -> bool:
        """Whether the loop has answered within `stall_seconds`. Any thread may read this."""
        return self._is_live

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_SECONDS):
            answered = threading.Event()
            began = time.monotonic()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:
                return
            self._await(answered)
            self._observe(time.monotonic() - began)

    def _await(self, answered: threading.Event) -> None:
        """Wait for the loop's answer, however long it takes."""
        turns = 0
        while not answered.wait(_PERIOD_SECONDS) and not self._closing.is_set():
            turns += 1
            stuck = turns * _PERIOD_SECONDS
            if not self._stall_seconds or stuck < self._stall_seconds:
                continue
            if self._is_live:
                self._is_live = False
                log.error("the event loop does not answer for %.1f s; it is at:\n%s", stuck, self._stack())
            if stuck >= ENDS_AFTER * self._stall_seconds:
                log.critical("the event loop is stuck for %.0f s; the process ends", stuck)
                _exit()
        if not self._is_live:
            log.warning("the event loop answers again")
            self._is_live = True

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._loop_thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else "nowhere"


def _exit() -> None:
    """End the process without the loop, which does not answer."""
    faulthandler.dump_traceback(all_threads=True)
    os._exit(STUCK_STATUS)
