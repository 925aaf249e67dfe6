"""Pseudowords: words that no language has, made of halves of words that one has."""

from __future__ import annotations

import unicodedata

from saegis_lab.polyglot.chance import Chance
from saegis_lab.polyglot.lexicon import Language

_VIRAMA = "\u094d"


def halves(word: str) -> tuple[str, str]:
    """The two halves of a word; a letter keeps the signs that belong to it."""
    place = (len(word) + 1) // 2
    while place < len(word) and (
        unicodedata.category(word[place]).startswith("M") or word[place - 1] == _VIRAMA
    ):
        place += 1
    return word[:place], word[place:]


def pseudoword(chance: Chance, language: Language) -> str:
    """The first half of one ordinary word of the language and the second half of another."""
    words = [word for subject in language.subjects.values() for word in subject.words if not subject.harmful]
    known = set(words)
    while True:
        made = halves(chance.pick(words))[0] + halves(chance.pick(words))[1]
        if made not in known:
            return made.lower()
