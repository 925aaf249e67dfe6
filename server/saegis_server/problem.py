"""A problem: one thing that is wrong with what somebody wrote, and where it stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: in which file (empty: none), at which line (0: none), at which key or rule."""

    message: str
    path: str = ""
    file: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """File and line, as far as they are known."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, self.path, self.message) if part)
