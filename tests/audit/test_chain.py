"""The chain: a line reads back as it was sealed, and what is no record is called so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.audit.chain import BEGINNING, UnreadableLineError, read_line, seal
from saegis_server.audit.records import RESERVED


@given(st.binary(max_size=80).map(lambda text: text + b"\n"))
def test_any_line_is_a_record_or_is_called_unreadable(text: bytes) -> None:
    with pytest.raises(UnreadableLineError):
        read_line(text, None)


@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in RESERVED),
        st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_a_sealed_line_reads_back(fields: dict[str, int | float]) -> None:
    payload = {**fields, "kind": "x", "time": "t"}
    line, link = seal(payload, BEGINNING, b"k" * 32)
    found = read_line(line, b"k" * 32)
    assert found.is_genuine
    assert found.follows(BEGINNING)
    assert found.record == payload | {"seq": 1, "prev": BEGINNING.hash, "hash": link.hash}
    assert not read_line(line, None).is_genuine
