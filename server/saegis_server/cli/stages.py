"""Progress displays of long work: its stages with their time, as bars, plain lines or JSON lines."""

import logging
import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from saegis.cli.output import notes, print_json_line
from saegis_server.rpc.server.logs import with_fields


class StageDisplay:
    """Called as `display(stage, done, total)`, from any thread; a total of 0 means that it is not known.

    A stage ends when all of it is done, when another begins, or with `close`. `seconds` holds the duration of
    each stage. Subclasses do the display.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._began = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage has come."""
        with self._lock:
            if stage != self._stage:
                self._end()
                if not done >= total > 0:
                    self._stage, self._began = stage, time.monotonic()
                    self.begun(stage, done, total)
            elif done >= total > 0:
                self._end()
            else:
                self.advanced(stage, done, total)

    def close(self) -> None:
        """End the running stage, and the display."""
        with self._lock:
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        if self._stage is not None:
            seconds = time.monotonic() - self._began
            self.seconds[self._stage] = seconds
            self.ended(self._stage, seconds)
            self._stage = None

    def begun(self, stage: str, done: int, total: int) -> None:
        """Show that a stage begins."""

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Show that a stage has come further."""

    def ended(self, stage: str, seconds: float) -> None:
        """Show that a stage has ended."""


class LineStages(StageDisplay):
    """A line for each stage that ends, for logs; with `announce` also a line when it begins."""

    def __init__(self, console: Console, announce: bool = True) -> None:
        super().__init__()
        self._console = console
        self._announce = announce

    def begun(self, stage: str, done: int, total: int) -> None:
        """Print which stage begins."""
        if self._announce:
            self._console.print(Text(f"  {stage}{_share(done, total)} ..."), soft_wrap=True)

    def ended(self, stage: str, seconds: float) -> None:
        """Print how long the stage took."""
        self._console.print(Text(f"  {stage}: {seconds:.1f} s"), soft_wrap=True)


class BarStages(StageDisplay):
    """Moving bars in a terminal: a spinner and a clock for the running stage, a tick for those that ended."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", visible=False)
        self._progress.start()

    def begun(self, stage: str, done: int, total: int) -> None:
        """Add a bar; it moves by itself if the total is not known."""
        self._task = self._progress.add_task(stage, total=total or None, completed=done)

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, total=total or None, completed=done)

    def ended(self, stage: str, seconds: float) -> None:
        """Fill the bar."""
        self._progress.update(self._task, total=1, completed=1)

    def close(self) -> None:
        """End the running stage and release the terminal."""
        super().close()
        self._progress.stop()


class JsonStages(StageDisplay):
    """One JSON object a line on standard output, for a program that started the server."""

    def begun(self, stage: str, done: int, total: int) -> None:
        """Print that the stage begins."""
        print_json_line({"event": "stage", "stage": stage, "done": done, "total": total})

    def advanced(self, stage: str, done: int, total: int) -> None:
        """Print how far it has come."""
        self.begun(stage, done, total)

    def ended(self, stage: str, seconds: float) -> None:
        """Print how long it took."""
        print_json_line({"event": "stage_ended", "stage": stage, "seconds": round(seconds, 3)})


class LogStages(StageDisplay):
    """A record of the log for each stage that ends."""

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log

    def ended(self, stage: str, seconds: float) -> None:
        """Record how long the stage took."""
        fields = with_fields(stage=stage, seconds=round(seconds, 3))
        self._log.info("%s: %.1f s", stage, seconds, extra=fields)


def stage_display(json: bool, log: logging.Logger | None = None) -> StageDisplay:
    """The display that fits: JSON lines if asked for, bars in a terminal, plain lines elsewhere.

    log: where stages are records of a log, that log.
    """
    if json:
        return JsonStages()
    if log is not None:
        return LogStages(log)
    out = notes()
    return BarStages(out) if out.is_terminal else LineStages(out)


def _share(done: int, total: int) -> str:
    return f" ({done + 1} of {total})" if total else ""
