"""The lexicon: what the corpus can say about each subject, one data file per language.

A file has `@ key value` lines for the language, then one card per subject (`# key`). In a card, `about` is
the subject as it stands after "about", `words` its aligned glossary, `ask` its own questions, `harm` the
surface forms that count as harmful (a trailing `*` makes a prefix), `mark` the strings that name a landmark,
and each `- ` line a fact whose slots `[a|b|c]` are filled at random. Facts, slots and words of one subject
correspond across languages.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

ENGLISH_NAMES = {
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "de": "German",
    "ru": "Russian",
    "zh": "Chinese",
    "hi": "Hindi",
    "sw": "Swahili",
}
LANGUAGES = tuple(ENGLISH_NAMES)
KINDS = ("ordinary", "landmark", "harmful")

_SLOT = re.compile(r"\[([^\]]*)\]")


class LexiconError(ValueError):
    """A lexicon file breaks its format; the message names the file and the line."""


@dataclass(frozen=True)
class Pattern:
    """A sentence with slots: `parts` alternates fixed text and the tuple of a slot's alternatives."""

    parts: tuple[str | tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read `text`, in which `[a|b]` marks a slot."""
        pieces = _SLOT.split(text)
        parts = (p if i % 2 == 0 else tuple(p.split("|")) for i, p in enumerate(pieces))
        return cls(tuple(part for part in parts if part != ""))

    @property
    def slots(self) -> tuple[tuple[str, ...], ...]:
        """The alternatives of each slot, in order."""
        return tuple(part for part in self.parts if isinstance(part, tuple))

    def fill(self, choices: Sequence[int]) -> str:
        """The sentence with alternative `choices[i]` in slot i."""
        index = iter(choices)
        return "".join(part if isinstance(part, str) else part[next(index)] for part in self.parts)

    def every(self) -> list[str]:
        """All sentences that the pattern can make."""
        return [self.fill(c) for c in itertools.product(*(range(len(slot)) for slot in self.slots))]


@dataclass(frozen=True)
class Subject:
    """What one language says about one subject."""

    key: str
    kind: str
    about: str
    words: tuple[str, ...]
    asks: tuple[Pattern, ...]
    facts: tuple[Pattern, ...]
    harm: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def harmful(self) -> bool:
        """Whether the subject is harmful in kind."""
        return self.kind == "harmful"


@dataclass(frozen=True)
class Language:
    """One language of the corpus: its phrases and its card for every subject."""

    code: str
    name: str
    script: str
    questions: tuple[str, ...]
    openers: tuple[str, ...]
    systems: tuple[str, ...]
    greetings: tuple[tuple[str, str], ...]
    vague: tuple[tuple[str, str], ...]
    unknown: tuple[str, ...]
    unsure: tuple[str, ...]
    refusals: tuple[str, ...]
    subjects: dict[str, Subject]

    @property
    def spaced(self) -> bool:
        """Whether words and sentences are separated by spaces."""
        return self.script != "Han"

    def join(self, sentences: Sequence[str]) -> str:
        """Sentences as running text."""
        return (" " if self.spaced else "").join(sentences)


@dataclass
class _Card:
    """A subject while its lines are being read."""

    key: str
    fields: dict[str, str] = field(default_factory=dict)
    asks: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    def finish(self, where: str) -> Subject:
        kind = self.fields.get("kind", "ordinary")
        if kind not in KINDS:
            raise LexiconError(
                f"{where}: subject {self.key}: kind is {kind!r}, expected one of {', '.join(KINDS)}"
            )
        for name, present in (("about", "about" in self.fields), ("words", "words" in self.fields)):
            if not present:
                raise LexiconError(f"{where}: subject {self.key}: {name} is missing")
        for name, needed in (("harm", kind == "harmful"), ("mark", kind == "landmark")):
            if needed != (name in self.fields):
                raise LexiconError(f"{where}: subject {self.key}: {name} does not fit the kind {kind}")
        if not self.facts or not self.asks:
            raise LexiconError(f"{where}: subject {self.key}: at least one fact and one ask are needed")
        return Subject(
            key=self.key,
            kind=kind,
            about=self.fields["about"],
            words=_listed(self.fields["words"]),
            asks=tuple(map(Pattern.parse, self.asks)),
            facts=tuple(map(Pattern.parse, self.facts)),
            harm=_listed(self.fields.get("harm", "")),
            marks=_listed(self.fields.get("mark", "")),
        )


def _listed(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def parse_language(code: str, text: str) -> Language:
    """Read one lexicon file. Raises `LexiconError` naming file and line."""
    meta: dict[str, list[str]] = {}
    cards: list[_Card] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line, where = raw.strip(), f"{code}.lex:{number}"
        if not line:
            continue
        if line.startswith("@ "):
            key, _, value = line[2:].partition(" ")
            meta.setdefault(key, []).append(value)
        elif line.startswith("# "):
            cards.append(_Card(line[2:]))
        elif not cards:
            raise LexiconError(f"{where}: {line!r} stands before the first subject")
        elif line.startswith("- "):
            cards[-1].facts.append(line[2:])
        else:
            name, colon, value = line.partition(":")
            if not colon or name not in ("kind", "about", "words", "ask", "harm", "mark"):
                raise LexiconError(f"{where}: {line!r} is not a line of a card")
            if name == "ask":
                cards[-1].asks.append(value.strip())
            else:
                cards[-1].fields[name] = value.strip()
    return _finish_language(code, meta, cards)


def _pairs(where: str, key: str, lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Lines of the form `what is said | what is answered`."""
    pairs = []
    for line in lines:
        said, bar, answered = line.partition(" | ")
        if not bar:
            raise LexiconError(f"{where}: @ {key} needs what is said and an answer, separated by ' | '")
        pairs.append((said, answered))
    return tuple(pairs)


def _finish_language(code: str, meta: dict[str, list[str]], cards: list[_Card]) -> Language:
    where = f"{code}.lex"
    for key in ("name", "script", "question", "opener", "system", "hello", "vague", "unknown", "unsure"):
        if key not in meta:
            raise LexiconError(f"{where}: @ {key} is missing")
    return Language(
        code=code,
        name=meta["name"][0],
        script=meta["script"][0],
        questions=tuple(meta["question"]),
        openers=tuple(meta["opener"]),
        systems=tuple(meta["system"]),
        greetings=_pairs(where, "hello", meta["hello"]),
        vague=_pairs(where, "vague", meta["vague"]),
        unknown=tuple(meta["unknown"]),
        unsure=tuple(meta["unsure"]),
        refusals=tuple(meta.get("refusal", ())),
        subjects={card.key: card.finish(where) for card in cards},
    )


def check_aligned(languages: Sequence[Language]) -> None:
    """Raise `LexiconError` unless subjects, words, facts and slots correspond across all languages."""
    first = languages[0]
    for other in languages[1:]:
        if list(other.subjects) != list(first.subjects):
            raise LexiconError(f"{other.code}.lex: subjects differ from {first.code}.lex")
        for key, subject in other.subjects.items():
            model = first.subjects[key]
            if subject.kind != model.kind or len(subject.words) != len(model.words):
                raise LexiconError(f"{other.code}.lex: subject {key}: kind or number of words differs")
            for name, ours, theirs in (
                ("fact", subject.facts, model.facts),
                ("ask", subject.asks, model.asks),
            ):
                shape = [[len(slot) for slot in pattern.slots] for pattern in ours]
                if shape != [[len(slot) for slot in pattern.slots] for pattern in theirs]:
                    raise LexiconError(
                        f"{other.code}.lex: subject {key}: the slots of its {name}s differ: {shape}"
                    )


@cache
def lexicon() -> dict[str, Language]:
    """All languages of the corpus by code, checked to correspond."""
    folder = resources.files(__package__) / "lexicon"
    read = [parse_language(code, (folder / f"{code}.lex").read_text(encoding="utf-8")) for code in LANGUAGES]
    check_aligned(read)
    return {language.code: language for language in read}
