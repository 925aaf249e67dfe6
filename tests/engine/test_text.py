"""Text as it comes: whatever the tokens, the pieces are the text, up to the stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.engine.text import TextStream
from tests.engine import tiny

TOKENIZER = tiny.tokenizer()
words = st.text(alphabet="ab·é中", max_size=30)


def encode(text: str) -> list[int]:
    """The tokens of a text, one a byte."""
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


@settings(max_examples=200, deadline=None)
@given(text=words, stops=st.lists(st.text(alphabet="ab·é", min_size=1, max_size=3), max_size=3))
def test_pieces_make_the_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    stream = TextStream(TOKENIZER, [], stops)
    pieces = []
    for token in encode(text):
        pieces.append(stream.push(token))
        if stream.matched is not None:
            break
    pieces.append(stream.finish())
    starts = [text.find(stop) for stop in stops if stop in text]
    got = "".join(pieces)
    if not starts:
        assert (got, stream.matched) == (text, None)
    else:
        assert stream.matched in stops
        assert text.startswith(got + str(stream.matched))
        assert not any(stop in got for stop in stops)


def test_the_stop_string_is_kept_if_wanted() -> None:
    stream = TextStream(TOKENIZER, [], ["ba"], keep_stop=True)
    assert "".join(stream.push(token) for token in encode("aab") + encode("ab")) == "aaba"
    assert stream.matched == "ba"


def test_nothing_is_looked_for_before_it_may_stop() -> None:
    stream = TextStream(TOKENIZER, [], ["ab"])
    assert "".join(stream.push(token, may_stop=False) for token in encode("abab")) == "abab"
    assert stream.matched is None


def test_special_tokens_are_skipped_or_kept() -> None:
    for skip, wanted in ((True, "ab"), (False, "a</s>b")):
        stream = TextStream(TOKENIZER, [], skip_special_tokens=skip)
        assert "".join(stream.push(token) for token in (*encode("a"), tiny.EOS, *encode("b"))) == wanted
