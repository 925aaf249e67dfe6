"""Tests of prompt files: what they hold, and how a wrong line is told."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import saegis
from saegis_lab.evaluation.experiment import Prompt, languages_of, load_prompts
from saegis_lab.records import InputFileError

GOOD = '{"prompt": "hi", "language": "en", "harmful": false}'
filled = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.builds(Prompt, filled, filled, st.booleans()), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt]) -> None:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [
        json.dumps(
            {"prompt": each.prompt, "language": each.language, "harmful": each.harmful}, ensure_ascii=False
        )
        for each in prompts
    ]
    path.write_bytes("\n\n".join(lines).encode())
    assert load_prompts(path) == tuple(prompts)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"prompt": "hi", "language": "en"}', "harmful: is missing"),
        ('{"prompt": "hi", "language": "en", "harmful": false, "kind": 1}', "kind: is not a key"),
        ('{"prompt": 3, "language": "en", "harmful": false}', "prompt: Input should be a valid string"),
        ('{"prompt": "hi", "language": "en", "harmful": 0}', "harmful: Input should be a valid boolean"),
        ('{"prompt": " ", "language": "en", "harmful": true}', "prompt is blank"),
        ('{"prompt": "hi", "language": "", "harmful": true}', "language is blank"),
    ],
)
def test_a_wrong_line_is_told_with_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(InputFileError, match=complaint) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert caught.value.line == 3


def test_a_picture_is_named_from_the_file_s_folder_and_stands_before_the_words(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hi", "language": "en", "harmful": false, "image": "a.png"}\n', "utf-8")
    with pytest.raises(InputFileError, match="line 1: image: only words are read here"):
        load_prompts(path)
    with pytest.raises(InputFileError, match=r"line 1: image: there is no file .*a\.png"):
        load_prompts(path, pictures=True)
    (tmp_path / "a.png").write_bytes(b"pixels")
    (prompt,) = load_prompts(path, pictures=True)
    assert prompt.messages == [{"role": "user", "content": [saegis.image(b"pixels"), "hi"]}]
    assert Prompt("hi", "en", False).messages == [{"role": "user", "content": "hi"}]


def test_files_without_prompts_and_unreadable_ones_are_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(InputFileError, match="cannot be read"):
        load_prompts(path)
    path.write_bytes(b"\n \n")
    with pytest.raises(InputFileError, match="no prompts"):
        load_prompts(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputFileError, match="cannot be read"):
        load_prompts(path)


def test_languages_keep_the_order_of_the_file() -> None:
    prompts = [Prompt("a", "zh", True), Prompt("b", "en", True), Prompt("c", "zh", False)]
    assert languages_of(prompts) == ("zh", "en")
    assert prompts[0].messages == [{"role": "user", "content": "a"}]
