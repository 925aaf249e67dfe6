"""The two tiers of tests: `pytest` runs the quick one, `pytest --all` every test at its full size."""

from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")
#: Whether every test runs, at its full size. Set by conftest.py before any test is read.
everything = False


def sized(full: int, quick: int) -> int:
    """How many a test takes of what it repeats: `full` where every test runs, else `quick`."""
    return full if everything else quick


def few(cases: Sequence[Case], quick: int) -> Sequence[Case]:
    """Which of a test's cases are run: all where every test runs, else the first `quick`."""
    return cases if everything else cases[:quick]
