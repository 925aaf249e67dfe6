"""The tiers of tests, and fixtures that tests of any folder may use."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import coverage
import hypothesis
import pytest
import typer.main
import typer.testing

from tests import tiers, tools

# How long an example takes is nobody's promise: a machine that does something else is not a failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="run the slow tests too, and every test at its full size"
    )
    parser.addoption(
        "--rest", action="store_true", help="run what is left out or smaller without --all, at its full size"
    )
    parser.addoption("--nightly", action="store_true", help="run the nightly tests, and no others")
    parser.addoption("--tools", action="store_true", help="fail where a tool of `make tools` is missing")


def pytest_configure(config: pytest.Config) -> None:
    tiers.everything = any(map(config.getoption, ("--all", "--rest", "--nightly")))
    tools.required = bool(config.getoption("--tools"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave unread what has no test that is asked for: reading all files takes a while."""
    if not collection_path.match("test_*.py"):
        return None
    if config.getoption("--nightly") and not tiers.is_marked(collection_path, "nightly"):
        return True
    if config.getoption("--rest") and not tiers.is_in_rest(collection_path):
        return True
    if config.getoption("markexpr") == "alone" and not tiers.is_marked(collection_path, "alone"):
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests unless all are asked for, and with --rest what the quick run has done.

    The nightly tests run when they are asked for, and then alone.
    """
    rest, nightly = config.getoption("--rest"), config.getoption("--nightly")

    def is_wanted(item: pytest.Item) -> bool:
        if (item.get_closest_marker("nightly") is not None) is not nightly:
            return False
        if tiers.everything and not rest:
            return True
        slow = item.get_closest_marker("slow") is not None
        test = item.nodeid.split("::")[1].partition("[")[0]
        return slow or test in tiers.sized_tests(item.path) if rest else not slow

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = filter(is_wanted, items)


@pytest.fixture(scope="session", autouse=True)
def commands_made_once() -> Iterator[None]:
    """Make the commands of an app once, as a process of its own does, and not for every call."""
    made = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", made)
        patch.setattr(typer.testing, "_get_command", made)
        yield


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """Measure no coverage in this module: of code that other tests run, and that tracing would slow down."""
    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()
