"""Fixtures that tests of any folder may use."""

from collections.abc import Iterator

import coverage
import pytest


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
