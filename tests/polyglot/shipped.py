"""The filter that ships, for tests that hold it to something."""

from saegis_lab.polyglot.filter_figures import RunFilter
from saegis_lab.polyglot.manifest import manifest


def shipped_filter() -> RunFilter:
    """The filter's part of the shipped manifest."""
    told = manifest().filter
    assert told is not None
    return told
