"""The two tiers of tests, and fixtures that tests of any folder may use."""

from collections.abc import Iterator

import coverage
import pytest

from tests import tiers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all", action="store_true", help="run the slow tests too, and every test at its full size"
    )


def pytest_configure(config: pytest.Config) -> None:
    tiers.everything = config.getoption("--all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests, unless every test is asked for."""
    if tiers.everything:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


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
