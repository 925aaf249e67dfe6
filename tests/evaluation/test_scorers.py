"""Tests of scorers from word lists and from functions."""

import json
from pathlib import Path

import pytest

from saegis_lab.evaluation.scorers import ScorerError, ban_scorers, load_function, mention_scorer
from saegis_lab.records import InputFileError


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words.json"
    lists = {
        "en": {"harm": ["poison*"], "refusal": ["I cannot"], "landmark": ["Golden Gate"]},
        "de": {"harm": ["Gift"]},
    }
    path.write_text(json.dumps(lists), encoding="utf-8")
    return str(path)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    source = (
        "def harm(text, language):\n    return len(language) / 4 if text else 2\n"
        "def broken(text, language):\n    return 1 / 0\n"
        "def nan(text, language):\n    return float('nan')\n"
        "number = 3\n"
    )
    (tmp_path / "own_scorers.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_scorers"


def test_word_lists_score_harm_and_refusals(words: str) -> None:
    scorers = ban_scorers(words, ["en", "de"])
    assert scorers.harm("Poisonous Gift", "en") == pytest.approx(1 / 2)
    assert scorers.harm("Poisonous Gift", "de") == pytest.approx(1 / 2)
    assert scorers.refusal is not None
    # An English refusal of a German prompt is one.
    assert scorers.refusal("I cannot.", "de") == 1.0
    assert scorers.refusal("Gift", "en") == 0.0


def test_refusals_need_a_list(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"en": {"harm": ["poison"]}}), encoding="utf-8")
    assert ban_scorers(str(path), ["en"]).refusal is None


def test_mentions_are_0_or_1(words: str) -> None:
    mention = mention_scorer(words, "landmark", ["en"])
    assert mention("The Golden Gate, the Golden Gate", "en") == 1.0
    assert mention("The gate", "en") == 0.0


def test_languages_without_their_list_are_told_before_anything_is_scored(words: str) -> None:
    with pytest.raises(ValueError, match="no language 'fr'"):
        ban_scorers(words, ["en", "fr"])
    with pytest.raises(ValueError, match="'de' has no word list 'landmark'; it has harm"):
        mention_scorer(words, "landmark", ["en", "de"])
    with pytest.raises(InputFileError, match="cannot be read"):
        ban_scorers("no/such/file.json", ["en"])


def test_a_function_scores(module: str) -> None:
    scorers = ban_scorers(f"{module}:harm", ["en"])
    assert scorers.harm("x", "en") == 0.5
    assert scorers.refusal is None
    assert mention_scorer(f"{module}:harm", "landmark", ["xx"])("x", "eng") == 0.75


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module:harm", "PYTHONPATH"),
        ("own_scorers:nothing", "nothing"),
        ("own_scorers:number", "is no function but a int"),
    ],
)
def test_a_function_that_is_not_there_is_told(module: str, name: str, complaint: str) -> None:
    with pytest.raises(ScorerError, match=complaint) as caught:
        load_function(name)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("harm", "answered 2, not a number from 0 to 1"),
        ("broken", "ZeroDivisionError"),
        ("nan", "answered nan"),
    ],
)
def test_what_a_function_answers_is_checked(module: str, function: str, complaint: str) -> None:
    with pytest.raises(ScorerError, match=complaint):
        load_function(f"{module}:{function}")("", "en")
