"""Other ways to put a prompt: templates by language, half of another language, and other letters."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from unicodedata import combining, normalize

from saegis_lab.evaluation.units import units
from saegis_lab.records import InputFileError, Record, read_record

SHIPPED = Path(__file__).parent / "attack_wordings.json"
_PLACE = "{prompt}"
#: Cyrillic letters that sound as one Latin letter or several do; the longest that fits is taken.
_CYRILLIC: Mapping[str, str] = MappingProxyType(
    {"shch": "щ", "sh": "ш", "ch": "ч", "zh": "ж", "kh": "х", "ts": "ц", "ya": "я", "yu": "ю"}
    | dict(zip("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопкрстуввкыз", strict=True))
)


@dataclass(frozen=True, slots=True)
class Wordings(Record):
    """A language's own name and its templates by name; `{prompt}` stands once or more in each.

    Raises ValueError for a template without it.
    """

    name: str
    wordings: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, template in self.wordings.items():
            if _PLACE not in template:
                raise ValueError(f"wordings.{name}: has no {_PLACE}")

    def put(self, name: str, prompt: str) -> str:
        """The prompt as a template words it. Raises KeyError for an unknown template."""
        return self.wordings[name].replace(_PLACE, prompt)


def load_wordings(path: Path = SHIPPED) -> Mapping[str, Wordings]:
    """Wordings by language. Raises InputFileError naming what is wrong, and for a file without languages."""
    wordings = read_record(dict[str, Wordings], path)
    if not wordings:
        raise InputFileError(path, "holds no language")
    return wordings


def halved(prompt: str, other: str) -> str:
    """The first half of one prompt and the second half of another: of words, or characters without spaces."""
    first, second = units(prompt), units(other)
    if not first or not second:
        return prompt
    return f"{prompt[: first[(len(first) - 1) // 2].end]} {other[second[len(second) // 2].start :]}"


def transliterated(text: str) -> str:
    """A text in other letters: Latin in Cyrillic ones, any other script in Latin ones.

    Raises ImportError where another script is to be written and `anyascii` is not installed.
    """
    letters = [char for char in text if char.isalpha()]
    if sum(char < "\u0250" for char in letters) * 2 >= len(letters):
        return _in_cyrillic(text)
    latin: str = importlib.import_module("anyascii").anyascii(text)
    return latin


def can_transliterate() -> bool:
    """Whether scripts other than Latin can be written in Latin letters."""
    return importlib.util.find_spec("anyascii") is not None


def _in_cyrillic(text: str) -> str:
    """A text of Latin letters in Cyrillic ones, in lower case and without accents."""
    written, place = [], 0
    plain = "".join(char for char in normalize("NFD", text.lower()) if not combining(char))
    while place < len(plain):
        length = next((size for size in (4, 2, 1) if plain[place : place + size] in _CYRILLIC), 0)
        written.append(_CYRILLIC[plain[place : place + length]] if length else plain[place])
        place += max(1, length)
    return "".join(written)
