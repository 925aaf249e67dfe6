"""The inputs of an experiment: the decoding, the prompts, and the files of a ban, a clamp or a redirect."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from saegis_lab.records import Record, parse_record, read_lines, read_record, write_record

if TYPE_CHECKING:
    from saegis import ChatMessage, Edit


@dataclass(frozen=True, slots=True)
class Decoding(Record):
    """Temperature 0 is greedy; else each prompt is answered `samples` times. Answers end at `max_tokens`.

    Raises ValueError naming the field that is wrong.
    """

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    max_tokens: int = 80

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: must be finite and at least 0, not {self.temperature}")
        if self.samples < 1:
            raise ValueError(f"samples: must be at least 1, not {self.samples}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples: greedy answers to one prompt are all the same; give a temperature")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: must be at least 1, not {self.max_tokens}")

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        times = f", {self.samples} samples" if self.samples > 1 else ""
        return f"temperature {self.temperature:g}{times}"


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A user's message, the language that it is in, and whether it asks for something harmful.

    image: the path of a picture that stands before the words; empty for none. Raises ValueError where prompt
    or language is blank.
    """

    prompt: str
    language: str
    harmful: bool
    image: str = ""

    def __post_init__(self) -> None:
        for name in ("prompt", "language"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is blank")

    @property
    def messages(self) -> list[ChatMessage]:
        """The prompt as a conversation of one turn. Raises OSError where its picture cannot be read."""
        if not self.image:
            return [{"role": "user", "content": self.prompt}]
        import saegis

        return [{"role": "user", "content": [saegis.image(self.image), self.prompt]}]


def load_prompts(path: Path, pictures: bool = False) -> tuple[Prompt, ...]:
    """Read prompts, in the order of the file; blank lines are skipped.

    pictures: whether prompts may have one, named from the file's folder; where only their words are read,
    they may not. Raises InputFileError with the line's number for anything that is not as `Prompt` says or
    names a picture that is not there, and for a file without prompts.
    """

    def read(text: str) -> Prompt:
        prompt = parse_record(Prompt, text)
        if not prompt.image:
            return prompt
        if not pictures:
            raise ValueError("image: only words are read here, no pictures")
        picture = path.parent / prompt.image
        if not picture.is_file():
            raise ValueError(f"image: there is no file {picture}")
        return replace(prompt, image=str(picture))

    return read_lines(path, read, "holds no prompts; write one JSON object a line")


def languages_of(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """The languages of the prompts, in the order in which they first occur."""
    return tuple(dict.fromkeys(prompt.language for prompt in prompts))


def first_of_each(prompts: Sequence[Prompt], most: int | None) -> tuple[Prompt, ...]:
    """The first `most` harmful and the first `most` benign prompts of each language; all where it is None."""
    taken: Counter[tuple[str, bool]] = Counter()
    kept = []
    for prompt in prompts:
        kind = (prompt.language, prompt.harmful)
        taken[kind] += 1
        if most is None or taken[kind] <= most:
            kept.append(prompt)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class BanFile(Record):
    """A ban: its features, and the strength (see `saegis.ban`) that it is meant to have.

    chosen_from: the languages of the texts from which the features were chosen. sae: the id of their SAE;
    empty where the server has one. Raises ValueError naming the field that is wrong.
    """

    features: tuple[int, ...]
    strength: float
    chosen_from: tuple[str, ...]
    sae: str = ""

    def __post_init__(self) -> None:
        _check_features(self.features)
        _check_amount("strength", self.strength)

    @classmethod
    def load(cls, path: Path) -> BanFile:
        """Read a ban file. Raises InputFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the ban file; an empty `sae` is left out."""
        write_record(path, self, "sae")


#: The units of a clamp's values: the feature's own, or multiples of its recorded maximum.
ClampUnit = Literal["feature", "max_activation"]
DEFAULT_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
DEFAULT_WORDS = "landmark"


@dataclass(frozen=True, slots=True)
class ClampFile(Record):
    """A feature, the values to clamp it to in `unit`, ascending, and the name of its word list.

    sae: the id of its SAE; empty where the server has one. Raises ValueError naming the field that is wrong.
    """

    feature: int
    values: tuple[float, ...] = DEFAULT_VALUES
    unit: ClampUnit = "max_activation"
    words: str = DEFAULT_WORDS
    sae: str = ""

    def __post_init__(self) -> None:
        if self.feature < 0:
            raise ValueError(f"feature: {self.feature} is no index")
        check_values(self.values)

    @classmethod
    def load(cls, path: Path) -> ClampFile:
        """Read a clamp file. Raises InputFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the clamp file; an empty `sae` is left out."""
        write_record(path, self, "sae")


@dataclass(frozen=True, slots=True)
class RedirectFile(Record):
    """A redirect of each of `features` to the feature `to`, by `factor` and `strength` (`saegis.redirect`).

    chosen_from: the languages of the texts from which the features were chosen. words: the name of the word
    list of what `to` stands for. sae: the id of their SAE; empty where the server has one. Raises ValueError
    naming the field that is wrong.
    """

    features: tuple[int, ...]
    to: int
    factor: float
    strength: float
    chosen_from: tuple[str, ...]
    words: str = DEFAULT_WORDS
    sae: str = ""

    def __post_init__(self) -> None:
        _check_features(self.features)
        if self.to < 0:
            raise ValueError(f"to: {self.to} is no index")
        if self.to in self.features:
            raise ValueError(f"to: {self.to} is one of the features that are redirected")
        _check_amount("factor", self.factor)
        _check_amount("strength", self.strength)

    @property
    def edits(self) -> list[Edit]:
        """One redirect for each of the features, in their order."""
        import saegis

        to = saegis.feature(self.to, sae=self.sae)
        return [
            saegis.redirect(saegis.feature(index, sae=self.sae), self.factor, to=to, strength=self.strength)
            for index in self.features
        ]

    @classmethod
    def load(cls, path: Path) -> RedirectFile:
        """Read a redirect file. Raises InputFileError naming the key that is wrong."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the redirect file; an empty `sae` is left out."""
        write_record(path, self, "sae")


def _check_features(features: tuple[int, ...]) -> None:
    if not features:
        raise ValueError("features: there must be at least one")
    if min(features) < 0:
        raise ValueError(f"features: {min(features)} is no index")
    if len(set(features)) < len(features):
        twice = next(feature for feature in features if features.count(feature) > 1)
        raise ValueError(f"features: {twice} stands there twice")


def _check_amount(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}: must be a finite number of at least 0, not {value}")


def check_values(values: tuple[float, ...]) -> None:
    """Raises ValueError unless there are values, all finite, each greater than the one before."""
    if not values:
        raise ValueError("values: there must be at least one")
    if not all(map(math.isfinite, values)):
        raise ValueError("values: must be finite")
    if any(later <= earlier for earlier, later in pairwise(values)):
        raise ValueError("values: each must be greater than the one before")
