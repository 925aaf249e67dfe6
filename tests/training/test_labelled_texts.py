"""Labelled texts: what is read, which lines are refused, and what is known of a text's tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_lab.records import InputFileError
from saegis_lab.training.texts import LabelledText, read_labelled_texts

LINE = '{"text": "a\u2028b", "label": "poison", "language": "en"}'

words = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(
    texts=st.lists(
        st.builds(LabelledText, text=words, label=words, language=words, harmful=st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: list[LabelledText]) -> None:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = [
        {"text": each.text, "label": each.label, "language": each.language, "harmful": each.harmful}
        for each in texts
    ]
    path.write_bytes("\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode())
    assert read_labelled_texts(path) == tuple(texts)


def test_harmful_may_be_left_out_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f"\n{LINE}\n  \n{LINE}", encoding="utf-8")
    assert read_labelled_texts(path) == (LabelledText("a\u2028b", "poison", "en", harmful=False),) * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ('{"text": "x", "label": "y"}', "language is None, not a text"),
        ('{"text": " ", "label": "y", "language": "en"}', "text is ' ', not a text"),
        ('{"text": "x", "label": 3, "language": "en"}', "label is 3, not a text"),
        ('{"text": "x", "label": "y", "language": "en", "harmful": 1}', "harmful is 1, not true or false"),
        (
            '{"text": "x", "label": "y", "lang": "en"}',
            "unknown field 'lang'; known are text, label, language",
        ),
        ('{"text": "x", "text": "y", "label": "y", "language": "en"}', "a field stands twice"),
        ("[" * 100_000, ""),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f"{LINE}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(InputFileError, match=rf"texts\.jsonl: line 3: .*{message}"):
        read_labelled_texts(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"texts\.jsonl: (there are no texts|cannot be read)"):
        read_labelled_texts(path)


def test_what_is_known_of_a_text_names_it_from_the_general_to_the_special() -> None:
    truth = LabelledText("x", "poison", "fr", harmful=True).truth
    assert (truth.subject, truth.language, truth.harmful) == ("poison", "fr", True)
    assert truth.concepts == ("poison", "poison in fr", "language fr", "anything harmful")
    assert "anything harmful" not in LabelledText("x", "bread", "fr").truth.concepts
