"""The display of a training run: a live bar in a terminal, a line now and then in a log."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

#: How many lines a whole run writes into a log.
_LINES = 10


class TrainingDisplay:
    """Shows loss, FVU, L0 and the share of dead features; use as a context manager."""

    def __init__(self, steps: int, first: int = 0, console: Console | None = None) -> None:
        """`first`: the step at which a resumed run goes on. Without a console: standard error."""
        self._console = console or Console(stderr=True, highlight=False)
        self._steps = steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=first)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def wanted(self, step: int) -> bool:
        """Whether the numbers of this step are shown: reading them off a GPU takes time."""
        if self._console.is_terminal:
            return step % 10 == 0 or step + 1 == self._steps
        return step % max(1, self._steps // _LINES) == 0 or step + 1 == self._steps

    def advance(self, step: int) -> None:
        """`step` is done."""
        self._bar.update(self._task, completed=step + 1)

    def show(self, step: int, loss: float, fvu: float, l0: float, dead: float) -> None:
        """Show the numbers of `step`; `dead` is a share."""
        told = f"loss {loss:.4f}  FVU {fvu:.3f}  L0 {l0:.1f}  dead {dead:.1%}"
        if self._console.is_terminal:
            self._bar.update(self._task, description=told)
        else:
            self._console.print(Text(f"  step {step + 1} of {self._steps}  {told}"), soft_wrap=True)
