"""The two tiers of tests: `pytest` runs the quick one, `pytest --all` every test at its full size."""

#: Whether every test runs, at its full size. Set by conftest.py before any test is read.
everything = False


def sized(full: int, quick: int) -> int:
    """How many a test takes of what it repeats: `full` where every test runs, else `quick`."""
    return full if everything else quick
