"""Text as it comes: whatever the tokens, the pieces are the text, up to the stop string."""

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from saegis_server.engine.torch.text import TextStream
from tests.engine import tiny

TOKENIZER = tiny.tokenizer()
letters_of_bytes: Any = bytes_to_unicode
LETTERS: dict[int, str] = letters_of_bytes()
VOCABULARY = TOKENIZER.get_vocab()
MERGED_TOKEN = 260
words = st.text(alphabet="ab·é中", max_size=30)


def merged() -> PreTrainedTokenizerFast:
    """The same bytes, and a token that is two letters and the first byte of a Cyrillic one."""
    letters = LETTERS[0xD0]
    vocabulary = {**VOCABULARY, "ab": 259, f"ab{letters}": MERGED_TOKEN}
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", letters)]))
    backend.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    return cast(PreTrainedTokenizerFast, make(tokenizer_object=backend))


MERGED = merged()


def encode(text: str) -> list[int]:
    """The tokens of a text, one a byte."""
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def byte_tokens(text: bytes) -> list[int]:
    """The tokens of these bytes, which need not be valid UTF-8."""
    return [VOCABULARY[LETTERS[byte]] for byte in text]


def decode(tokens: list[int]) -> str:
    """The text of all these tokens at once."""
    return str(TOKENIZER.decode(tokens))


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


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=12), answer=st.binary(max_size=24))
def test_bytes_of_any_kind_make_the_text_that_they_make_at_once(prompt: str, answer: bytes) -> None:
    before, after = byte_tokens(prompt.encode()), byte_tokens(answer)
    stream = TextStream(TOKENIZER, before)
    got = "".join(stream.push(token) for token in after) + stream.finish()
    assert got == decode([*before, *after]).removeprefix(prompt)


def test_an_end_amid_a_character_loses_nothing_of_the_token_that_began_it() -> None:
    """A token of most vocabularies may hold several characters and the first byte of another."""
    stream = TextStream(MERGED, [])
    assert stream.push(MERGED_TOKEN) == "ab"
    assert stream.finish() == "\ufffd"


def test_a_stop_string_is_found_before_a_character_that_is_not_whole_yet() -> None:
    stream = TextStream(MERGED, [], ["b"])
    assert (stream.push(MERGED_TOKEN), stream.matched) == ("a", "b")
    assert stream.finish() == ""


def test_a_stop_string_may_be_what_a_broken_character_reads_as() -> None:
    stream = TextStream(TOKENIZER, [], ["\ufffd"])
    assert stream.push(byte_tokens(b"\xd0")[0]) == ""
    assert (stream.finish(), stream.matched) == ("", "\ufffd")


@settings(max_examples=50, deadline=None)
@given(
    run=st.lists(st.sampled_from([b"\xff", b"\xf0\x9f\x98", b"\xe4\xb8", b"\x80"]), min_size=1, max_size=3),
    times=st.integers(10, 60),
    end=st.sampled_from([b"", b"a", "\u044f".encode()]),
)
def test_bytes_that_never_become_a_character_are_told_in_time(
    run: list[bytes], times: int, end: bytes
) -> None:
    tokens = byte_tokens(b"".join(run) * times + end)
    stream, got, latest = TextStream(TOKENIZER, []), "", 0
    for count, token in enumerate(tokens):
        if new := stream.push(token):
            got, latest = got + new, count
        assert count - latest <= 40
        assert len(stream._ids) <= 64
    assert got + stream.finish() == decode(tokens)


@given(text=st.text(min_size=1, max_size=12), data=st.data())
def test_characters_split_over_tokens_come_whole_wherever_the_prompt_ends(text: str, data: Any) -> None:
    tokens = byte_tokens(text.encode())
    cut = data.draw(st.integers(0, len(tokens)))
    stream = TextStream(TOKENIZER, tokens[:cut])
    got = "".join(stream.push(token) for token in tokens[cut:]) + stream.finish()
    assert got == text[len(text.encode()[:cut].decode(errors="ignore")) :]


def test_a_character_that_the_prompt_began_is_finished_alone() -> None:
    before = byte_tokens("the prompt é".encode())
    stream = TextStream(TOKENIZER, before[:-1])
    assert stream.push(before[-1]) == "é"


def test_byte_tokens_that_become_invalid_together_still_give_text() -> None:
    """As in Llama's and Gemma's vocabularies, where a run of byte tokens is decoded as a whole."""
    letters = {f"<0x{byte:02X}>": byte for byte in range(256)}
    backend = Tokenizer(models.BPE({**letters, "b": 256}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    make: Any = PreTrainedTokenizerFast
    stream = TextStream(make(tokenizer_object=backend), ())
    pieces = [stream.push(token) for token in (0x41, 0xFF, 256)]
    assert pieces[0] == "A"
    assert pieces[2].endswith("b")
