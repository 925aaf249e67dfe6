"""A problem: one thing that is wrong with what a user wrote, and its place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. path: the key or rule; file: empty for none; line: 0 for none."""

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
