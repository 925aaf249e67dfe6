"""The tiers of tests: `pytest` runs the quick one, `pytest --all` every test at its full size.

`pytest --rest` runs what the quick one leaves out or does at a smaller size: the slow tests, and those that
take a size here. Both together are all tests at their full size, but for the nightly ones: `pytest --nightly`
runs those, and no others.
"""

import ast
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

Case = TypeVar("Case")
#: Whether tests run at their full size. Set by conftest.py before any test is read.
everything = False


def sized(full: int, quick: int) -> int:
    """How many a test takes of what it repeats: `full` where every test runs, else `quick`."""
    return full if everything else quick


def few(cases: Sequence[Case], quick: int) -> Sequence[Case]:
    """Which of a test's cases are run: all where every test runs, else the first `quick`."""
    return cases if everything else cases[:quick]


def is_marked(file: Path, mark: str) -> bool:
    """Whether a test of a file has a mark."""
    return f"mark.{mark}" in file.read_text(encoding="utf-8")


def is_in_rest(file: Path) -> bool:
    """Whether the quick tier leaves out some test of a file, or may do it at a smaller size."""
    return is_marked(file, "slow") or __name__ in file.read_text(encoding="utf-8")


@cache
def sized_tests(file: Path) -> frozenset[str]:
    """The names of a file's tests that may be smaller in the quick tier: those that name `sized` or `few`, or
    anything of the file that does, a fixture among it."""
    named = dict(_names(ast.parse(file.read_text(encoding="utf-8"))))
    found = {"sized", "few"}
    while more := {name for name, names in named.items() if names & found} - found:
        found |= more
    return frozenset(name for name in found if name.startswith("test_"))


def _names(module: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Each name that a statement of a module binds, with the names that the statement has in it."""
    for statement in module.body:
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        names |= {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, names
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id, names
