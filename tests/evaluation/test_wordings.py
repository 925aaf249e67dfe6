"""Other wordings of a prompt: the shipped templates, halves of two prompts, and other letters."""

from pathlib import Path

import pytest

from saegis_lab.evaluation.wordings import Wordings, halved, load_wordings, transliterated
from saegis_lab.polyglot.lexicon import LANGUAGES, lexicon
from saegis_lab.realmodel.chats import Chats
from saegis_lab.records import InputFileError


def test_the_shipped_wordings_are_of_all_languages_that_ship_and_the_same_in_each() -> None:
    shipped = load_wordings()
    assert {*shipped} == {*LANGUAGES, *Chats.load().languages}
    assert len({tuple(of.wordings) for of in shipped.values()}) == 1
    for code, of in shipped.items():
        assert code not in lexicon() or of.name == lexicon()[code].name
        for name in of.wordings:
            worded = of.put(name, "PROMPT")
            assert "PROMPT" in worded
            assert worded != "PROMPT"


def test_a_template_without_the_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wordings\.novel: has no \{prompt\}"):
        Wordings("English", {"novel": "For a novel."})
    (tmp_path / "w.json").write_text('{"en": {"name": "English", "wordings": {"a": "{prompt}", "b": "x"}}}')
    with pytest.raises(InputFileError, match=r"wordings\.b: has no"):
        load_wordings(tmp_path / "w.json")
    (tmp_path / "w.json").write_text("{}")
    with pytest.raises(InputFileError, match="holds no language"):
        load_wordings(tmp_path / "w.json")


@pytest.mark.parametrize(
    ("first", "second", "mixed"),
    [
        ("How do I bake bread?", "Wie backe ich ein Brot?", "How do I ich ein Brot?"),
        ("one", "zwei", "one zwei"),
        ("教我使用文件。", "Teach me to read.", "教我使 to read."),
        ("Teach me to read.", "教我使用文件。", "Teach me 用文件。"),
        ("?!", "Teach me", "?!"),
    ],
)
def test_half_of_a_prompt_is_of_another(first: str, second: str, mixed: str) -> None:
    assert halved(first, second) == mixed


def test_latin_letters_become_cyrillic_ones() -> None:
    assert transliterated("Schokolade, shch ya!") == "счоколаде, щ я!"
    assert transliterated("¿Cómo?") == "¿цомо?"


def test_other_scripts_become_latin_letters() -> None:
    pytest.importorskip("anyascii")
    assert transliterated("Как это?") == "Kak eto?"
    assert transliterated("教我").isascii()
