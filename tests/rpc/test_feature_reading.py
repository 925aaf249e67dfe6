"""Windows of long texts: every token is read once, and after half a window of others."""

from hypothesis import given
from hypothesis import strategies as st

from saegis_server.rpc.services.feature_reading import windows


@given(count=st.integers(1, 300), length=st.integers(4, 64), begins=st.integers(0, 1))
def test_every_token_is_read_once_behind_half_a_window(count: int, length: int, begins: int) -> None:
    tokens = tuple(range(count))
    found = windows(tokens, length, begins)
    read = [token for window in found for token in window.tokens[window.seen :]]
    assert read == list(tokens)
    assert (len(found) == 1) == (count <= length)
    for window in found:
        assert len(window.tokens) <= length
        assert window.tokens[:begins] == tokens[:begins]
        seen = window.tokens[begins:]
        assert list(seen) == list(range(min(seen, default=0), max(seen, default=-1) + 1))
    for window in found[1:]:
        assert window.seen - begins >= (length - begins) // 2
