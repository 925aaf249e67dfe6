"""A text as units to count: its words, or its characters in scripts that put no spaces between words."""

import re
import unicodedata
from dataclasses import dataclass

#: Han, Kana, Bopomofo, Thai, Lao, Tibetan, Burmese and Khmer.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U000323af"
)
_UNSPACED_CHAR = re.compile(f"[{_UNSPACED}]")
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\s'{_UNSPACED}]+")
_APOSTROPHES = str.maketrans("’‘ʼ", "'''")


@dataclass(frozen=True, slots=True)
class Unit:
    """A word or a character, and where it lies: `start` to `end` in the normalized text."""

    text: str
    start: int
    end: int
    unspaced: bool
    """Whether it is a character of a script without spaces."""


def normalized(text: str) -> str:
    """`text` with case folded, compatible characters unified (NFKC) and one blank wherever there is space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_APOSTROPHES).split())


def units(text: str) -> tuple[Unit, ...]:
    """The units of a normalized text, in order.

    Words end at spaces and apostrophes, and lose the punctuation at their ends. In scripts without spaces
    each letter or digit is a unit; marks over and under it belong to it.
    """
    words = []
    for match in _PIECE.finditer(text):
        start, end = match.span()
        while start < end and not _is_of_word(text[start]):
            start += 1
        while start < end and not _is_of_word(text[end - 1]):
            end -= 1
        word = text[start:end]
        if any(char.isalnum() for char in word):
            words.append(Unit(word, start, end, _UNSPACED_CHAR.match(word) is not None))
    return tuple(words)


def repetition(text: str, size: int = 3) -> float:
    """The share of a text's runs of `size` units that occurred before in it, 0 to 1; 0 where there are none.

    1 − distinct / all n-grams, as in Welleck et al. 2020 (arXiv 1908.04319), seq-rep-n.
    """
    words = [unit.text for unit in units(normalized(text))]
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _is_of_word(char: str) -> bool:
    """Whether a character is a letter, a digit or a mark of one."""
    return char.isalnum() or unicodedata.category(char).startswith("M")
