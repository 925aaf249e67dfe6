"""Documents from files, their split, and their token ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from saegis_lab.training.texts import Encoder, TextError, TextSplit, read_documents
from tests.engine import tiny

BOS = 256


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that puts <s> before a text."""
    made = tiny.tokenizer()
    backend: Tokenizer = made.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return made


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_txt_holds_paragraphs(tmp_path: Path) -> None:
    content = "\ufeff\none\n  two \r\n\r\n \t\nthree\n\n\nfour"
    assert list(read_documents(write(tmp_path, "a.txt", content))) == ["one\n  two ", "three", "four"]


def test_a_jsonl_holds_texts(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "more": 1}) for text in ("one\n\ntwo", "", "three")]
    path = write(tmp_path, "a.jsonl", "\n\n".join(lines))
    assert list(read_documents(path)) == ["one\n\ntwo", "", "three"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "x", "a.csv: is neither .txt"),
        ("a.jsonl", '{"text": "x"}\n{', "a.jsonl:2: is not JSON"),
        (
            "a.jsonl",
            '{"text": "x"}\n\n{"txt": "x"}',
            "a.jsonl:3: is not an object with a string in the field",
        ),
        ("a.jsonl", '{"text": 3}', "a.jsonl:1: is not an object with a string"),
        ("a.jsonl", '["x"]', "a.jsonl:1: is not an object"),
        ("a.txt", b"fine\n\n\xff\xfe", "a.txt:3: is not UTF-8"),
    ],
)
def test_an_error_names_the_file_and_the_line(
    tmp_path: Path, name: str, content: str | bytes, complaint: str
) -> None:
    with pytest.raises(TextError, match=complaint.replace(".", r"\.")):
        list(read_documents(write(tmp_path, name, content)))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="cannot be read"):
        list(read_documents(tmp_path / "none.txt"))


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text(max_size=12), max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_every_document_is_on_one_side_and_equal_ones_on_the_same(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], share: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    path = write(folder, "a.jsonl", "\n".join(json.dumps({"text": text}) for text in texts))
    split = TextSplit([path], held_out=share, seed=seed)
    training, held_out = list(split.training()), list(split.held_out_documents())
    assert sorted(training + held_out) == sorted(texts)
    assert not set(training) & set(held_out)


def test_about_the_share_is_held_out_and_the_seed_decides_which(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n\n".join(f"text {number}" for number in range(2000)))
    sides = [set(TextSplit([path], held_out=0.25, seed=seed).held_out_documents()) for seed in (1, 1, 2)]
    assert sides[0] == sides[1]
    assert 420 < len(sides[0]) < 580
    assert sides[0] != sides[2]


def test_with_a_file_of_its_own_nothing_else_is_held_out(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{name}.txt", f"{name}1\n\n{name}2") for name in "abc"]
    split = TextSplit(paths[:2], held_out_file=paths[2], held_out=0.9)
    assert list(split.training()) == ["a1", "a2", "b1", "b2"]
    assert list(split.held_out_documents()) == ["c1", "c2"]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_out_of_range_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="held_out is"):
        TextSplit([Path("a.txt")], held_out=share)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text("abc ", max_size=30), max_size=6), context=st.integers(2, 12))
def test_rows_hold_every_token_and_begin_alike(texts: list[str], context: int) -> None:
    rows = list(Encoder(with_bos(), context).rows(texts))
    assert all(row[0] == BOS and len(row) <= context for row in rows)
    rest = [token for row in rows for token in row[1:]]
    assert rest == [token for text in texts for token in tiny.tokenizer()(text)["input_ids"]]


def test_without_a_beginning_token_pieces_are_just_cut() -> None:
    rows = list(Encoder(tiny.tokenizer(), 4).rows(["abcdef", "", "ab"]))
    plain = tiny.tokenizer()("abcdef")["input_ids"]
    assert rows == [plain[:4], plain[4:], plain[:2]]


def test_raw_texts_bring_their_special_tokens() -> None:
    (row,) = Encoder(with_bos(), 64, raw=True).rows(["<s>ab</s>"])
    assert row == [BOS, *tiny.tokenizer()("ab")["input_ids"], 257]
    with pytest.raises(ValueError, match=r"begins with <s>, which the tokenizer adds too; give --raw"):
        list(Encoder(with_bos(), 64).rows(["<s>ab"]))


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("beginning", [False, True])
def test_a_sample_is_read_as_the_same_tokens_by_the_server(raw: bool, beginning: bool) -> None:
    """The server encodes it as plain text, whatever the tokenizer adds."""
    tokenizer = with_bos() if beginning else tiny.tokenizer()
    text = ("<s>" if raw and beginning else "") + "the river, über the bridge"
    encoder = Encoder(tokenizer, 64, raw)
    (row,) = encoder.rows([text])
    assert tokenizer.encode(encoder.sample(text, 10)) == row[:10]
    assert tokenizer.encode(encoder.sample(text, 1000)) == row
