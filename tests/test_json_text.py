"""Strict JSON: what the parsers of labels, texts and configurations read it with."""

import pytest

from saegis_server.json_text import parse_json


def test_whole_characters_are_read_however_they_are_written() -> None:
    assert parse_json('{"a": ["\\u00e9", "\\ud83d\\ude00", "é", "\\\\ud800"]}') == {
        "a": ["é", "😀", "é", "\\ud800"]
    }


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '{"a": [{"b": "x\\ud83d"}]}'])
def test_half_of_a_character_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"half of a character: the escape \\u[0-9a-f]{4} stands alone"):
        parse_json(text)


def test_a_key_stands_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"a": 1, "a": 2}')
