"""Usage: how all features of dictionaries was used, over stretches of time that grow with their age."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.counts import Used
from saegis_server.telemetry.usage_files import (
    Known,
    Stretch,
    UsageFileError,
    read_usage,
    usage_file,
    write_usage,
)

log = logging.getLogger("saegis.usage")
#: The shortest stretch, in seconds: how finely the latest use is told.
FINEST_SECONDS = 10.0
#: How long a stretch may be, as a share of how long ago it was.
SHARE = 0.25
#: How often what was counted is taken from the engine, and how often it is written, in seconds.
TAKE_SECONDS, WRITE_SECONDS = 5.0, 300.0
#: How sure it is that a rate has changed, of all features of a dictionary together.
SURE = 0.95


class Period(NamedTuple):
    """How features were used from one time to another, in seconds since the epoch."""

    start: float
    end: float
    used: Used


class History:
    """How the features of one dictionary were used, newest last. Not safe to use from several threads.

    What happened lately is kept in stretches of FINEST_SECONDS. Neighbours are joined once both together are
    shorter than SHARE of the time that has passed since: so there are some seventy stretches for a month, of
    24 bytes a feature, and a question about the last week is answered with at most a quarter of a week more.
    """

    def __init__(self, features: int, began: float, known: Known | None = None) -> None:
        """`began`: when the counting did; `known`: what was counted before."""
        self._end = began
        self._stretches = [] if known is None else list(known.stretches)
        self._last = np.zeros((2, features)) if known is None else known.last
        self._is_cut = False

    @property
    def known(self) -> Known:
        """All that is known."""
        return Known(tuple(self._stretches), self._last)

    def add(self, used: Used, now: float) -> None:
        """Add what was counted until now, since this was last called."""
        start, self._end = self._end, max(now, self._end)
        if not used.tokens.any():
            return
        self._last = np.maximum(self._last, used.last)
        stretch = Stretch.of(start, self._end, used)
        latest = self._stretches[-1] if self._stretches and not self._is_cut else None
        self._is_cut = False
        if latest is not None and self._end - latest.start <= FINEST_SECONDS and latest.fits(stretch):
            self._stretches[-1] = latest.joined(stretch)
        else:
            self._stretches.append(stretch)
        self._join()

    def cut(self) -> None:
        """Let what comes next begin a stretch of its own, so that it is told apart from what was."""
        self._is_cut = True

    def _join(self) -> None:
        """Join neighbours that are short for their age."""
        kept: list[Stretch] = []
        for each in self._stretches:
            older = kept[-1] if kept else None
            if (
                older is not None
                and each.end - older.start <= SHARE * (self._end - each.end)
                and older.fits(each)
            ):
                kept[-1] = older.joined(each)
            else:
                kept.append(each)
        self._stretches = kept

    def since(self, start: float) -> Period:
        """What happened from `start` on, from the beginning of the stretch in which that lies."""
        own = [each for each in self._stretches if each.end > start]
        return self._sum(own, self._end) or Period(self._end, self._end, Used.nothing(self._last.shape[1]))

    def before(self, period: Period) -> Period | None:
        """What happened in a time as long as a period, just before it; None where nothing is known of it."""
        begin = 2.0 * period.start - period.end
        return self._sum(
            [each for each in self._stretches if each.end <= period.start and each.end > begin], period.start
        )

    def _sum(self, stretches: list[Stretch], end: float) -> Period | None:
        """What stretches come to, up to `end`; None for none."""
        if not stretches:
            return None
        used = Used.nothing(self._last.shape[1])
        for each in stretches:
            for name in ("tokens", "fired", "total"):
                np.add(getattr(used, name), getattr(each, name), out=getattr(used, name))
            np.maximum(used.largest, each.largest, out=used.largest)
        np.copyto(used.last, self._last, where=used.fired > 0)
        return Period(stretches[0].start, max(end, stretches[-1].end), used)


class Change(NamedTuple):
    """How much more often M features fire than before, float64 [M] each.

    log_ratio: ln(p/q) of the rates now and before, 0.5 being added to each number of firings and 1 to each
    number of tokens, so that a feature that never fired has a rate too. sure: by how much at least the rate
    has changed, with its sign; 0 where that is not sure.
    """

    log_ratio: NDArray[np.float64]
    sure: NDArray[np.float64]


def change(
    fired: NDArray[np.int64], tokens: int, fired_before: NDArray[np.int64], tokens_before: int
) -> Change:
    """By how much the rates of M features have changed: the confidence bound of the log of their ratio.

    With a of n tokens now and b of m before, L = ln((a + ½)/(n + 1)) − ln((b + ½)/(m + 1)) has the variance
    V = 1/(a + ½) − 1/(n + 1) + 1/(b + ½) − 1/(m + 1) (Katz et al., Biometrics 34 (1978) 469-474; the halves
    are those of Walter, Biometrika 62 (1975) 371-374). The bound is sign(L)·max(0, |L| − z·√V), z being such
    that all M features are within their bounds with the chance SURE (Bonferroni), if tokens are independent
    of each other. Tokens of one text are not, so that a sudden text can exceed it: compare long periods.
    """
    a, b = fired + 0.5, fired_before + 0.5
    n, m = tokens + 1.0, tokens_before + 1.0
    ratio = np.log(a / n) - np.log(b / m)
    deviation = np.sqrt(np.maximum(1.0 / a - 1.0 / n + 1.0 / b - 1.0 / m, 0.0))
    z = NormalDist().inv_cdf(1.0 - (1.0 - SURE) / (2.0 * max(len(fired), 1)))
    return Change(ratio, np.sign(ratio) * np.maximum(np.abs(ratio) - z * deviation, 0.0))


def _lock(folder: Path) -> int:
    """Make a folder this server's own; the descriptor that holds it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ValueError(f"usage_state: another server keeps its counts in {folder}") from error
    return lock


@dataclass(frozen=True, slots=True)
class Counted:
    """A dictionary whose use is counted: the SAE's id, its digest, and how many features it has."""

    sae: str
    digest: str
    features: int


class UsageBook:
    """How every feature of the SAEs is used: taken from the engine, and kept in a folder if there is one.

    Safe to use from any thread. `start` begins a thread, which `close` ends.
    """

    def __init__(
        self,
        take: Callable[[], Mapping[str, Used]],
        counted: tuple[Counted, ...],
        every: int,
        folder: Path | None = None,
    ) -> None:
        """`take`: gives what was counted since it was last called, by SAE. `every`: at one of how many steps.

        Raises OSError if the folder cannot be made or read, and ValueError if it is another server's. A file
        in it that cannot be used is set aside.
        """
        self.every, self._take, self._folder = every, take, folder
        self._counted = {each.sae: each for each in counted}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._written = time.monotonic()
        self._own = -1 if folder is None else _lock(folder)
        began = time.time()
        self._histories = {each.sae: History(each.features, began, self._read(each)) for each in counted}

    def _read(self, counted: Counted) -> Known | None:
        """What the folder holds of an SAE."""
        if self._folder is None:
            return None
        path = usage_file(self._folder, counted.sae, counted.digest)
        try:
            return read_usage(path, counted.sae, counted.digest, counted.features)
        except FileNotFoundError:
            log.info("%s: there is none yet, so the use of %s is counted from now", path, counted.sae)
        except UsageFileError as error:
            aside = path.with_name(f"{path.name}.set-aside")
            path.replace(aside)
            log.warning("%s; it is %s now, and the use of %s is counted from now", error, aside, counted.sae)
        return None

    def start(self) -> None:
        """Take and write every so often from now on."""
        self._thread = threading.Thread(target=self._run, name="saegis-usage", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; take and write what is left."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._guarded(self.refresh)
        self._guarded(self.write)
        if self._own >= 0:
            os.close(self._own)
            self._own = -1

    def _run(self) -> None:
        while not self._stop.wait(TAKE_SECONDS):
            self._guarded(self.refresh)
            if time.monotonic() - self._written >= WRITE_SECONDS:
                self._guarded(self.write)

    def _guarded(self, work: Callable[[], None]) -> None:
        """What fails here must not end the thread, nor the server."""
        try:
            work()
        except Exception:
            log.exception("the use of features is not kept")

    def refresh(self) -> None:
        """Take what was counted until now."""
        with self._lock:
            now = time.time()
            for sae, used in self._take().items():
                self._histories[sae].add(used, now)

    def write(self) -> None:
        """Write all that is known into the folder. Raises OSError."""
        self._written = time.monotonic()
        if self._folder is None:
            return
        with self._lock:
            every = {sae: history.known for sae, history in self._histories.items()}
        for sae, known in every.items():
            digest = self._counted[sae].digest
            if known.stretches:
                write_usage(usage_file(self._folder, sae, digest), sae, digest, known)

    def period(
        self, sae: str, seconds: float | None = None, cut: bool = False
    ) -> tuple[Period, Period | None]:
        """How an SAE was used in the last so many seconds, by default ever, and in as long a time before.

        cut: whether it is to be compared with what comes after it, which is then kept apart from now on.
        Raises KeyError for an SAE whose use is not counted.
        """
        self.refresh()
        with self._lock:
            history = self._histories[sae]
            start = -math.inf if seconds is None else time.time() - seconds
            period = history.since(start)
            if cut:
                history.cut()
            return period, None if seconds is None else history.before(period)
