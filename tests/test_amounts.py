"""Amounts of memory in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.amounts import Portion, in_units


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GiB", 2**32), ("512 MB", 512 * 10**6), ("1.5gib", 3 * 2**29), ("7B", 7), (" 2TiB ", 2**41)],
)
def test_bytes_have_a_unit(text: str, size: int) -> None:
    assert Portion.parse(text).of(10) == size


@given(st.floats(0.001, 0.999), st.integers(0, 2**50))
def test_a_share_is_never_more_than_there_is(share: float, free: int) -> None:
    assert 0 <= Portion.parse(f"{share:.3f}").of(free) <= free


@pytest.mark.parametrize("text", ["", "4", "1.0", "0.0", "-1GiB", "4 GiBs", "1e9", "0B", "nan", "4QB", "x"])
def test_what_is_no_amount_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="such as 4GiB or 512MB, or a share of what is free, such as"):
        Portion.parse(text)


def test_bytes_are_told_in_units() -> None:
    told = [in_units(size) for size in (0, 1023, 1024, 5 * 2**30 // 2, 2**50, 2**63)]
    assert told == ["0 B", "1023 B", "1.0 KiB", "2.5 GiB", "1.0 PiB", "8192.0 PiB"]
