"""Scorers: what says of a text, in a language, how much it has of something, from 0 to 1."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saegis_lab.evaluation.word_lists import WordLists

#: Told a text and its prompt's language; answers from 0 to 1.
Scorer = Callable[[str, str], float]

HARM, REFUSAL = "harm", "refusal"
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class ScorerError(ValueError):
    """A scorer that cannot be loaded, or that answered something other than a number from 0 to 1."""


@dataclass(frozen=True, slots=True)
class BanScorers:
    """What the answers under a ban are scored by; without `refusal`, refusals are not counted."""

    harm: Scorer
    refusal: Scorer | None


def ban_scorers(source: str, languages: Sequence[str]) -> BanScorers:
    """The scorers that a FILE of word lists or a `module:function` names.

    Of word lists, `harm` gives the share of words that it covers, in each of `languages`; `refusal`, which
    may be left out, whether the answer begins with one of its phrases. A function scores harm alone.
    Raises ScorerError, EvaluationFileError, and ValueError for a language without its list.
    """
    if _is_function(source):
        return BanScorers(load_function(source), None)
    lists = WordLists.load(Path(source))
    lists.require(HARM, languages)
    refusal = (lambda text, _language: float(lists.opens(REFUSAL, text))) if lists.has(REFUSAL) else None
    return BanScorers(lambda text, language: lists.share(HARM, text, language), refusal)


def mention_scorer(source: str, words: str, languages: Sequence[str]) -> Scorer:
    """The scorer of a FILE of word lists, 1 where a form of the list `words` occurs; or a `module:function`.

    Raises as `ban_scorers` does.
    """
    if _is_function(source):
        return load_function(source)
    lists = WordLists.load(Path(source))
    lists.require(words, languages)
    return lambda text, language: float(lists.occurs(words, text, language))


def load_function(name: str) -> Scorer:
    """The scorer `package.module:function`. Raises ScorerError where there is none.

    What it answers is checked at each call: ScorerError for anything but a number from 0 to 1.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except ImportError as error:
        raise ScorerError(f"scorer {name!r}: {error}; is its folder on PYTHONPATH?") from error
    except AttributeError as error:
        raise ScorerError(f"scorer {name!r}: {error}") from error
    if not callable(function):
        raise ScorerError(f"scorer {name!r} is no function but a {type(function).__name__}")

    def score(text: str, language: str) -> float:
        try:
            value = function(text, language)
        except Exception as error:
            raise ScorerError(f"scorer {name!r} failed: {type(error).__name__}: {error}") from error
        # Also refuses NaN, which is not between anything.
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ScorerError(f"scorer {name!r} answered {value!r}, not a number from 0 to 1")
        return float(value)

    return score


def _is_function(source: str) -> bool:
    return _FUNCTION.fullmatch(source) is not None and not Path(source).exists()
