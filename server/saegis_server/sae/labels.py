"""Feature labels: the `features.jsonl` beside an SAE, one JSON object per line."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from saegis_server.json_text import parse_json
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.label_index import LabelIndex, Matches, words_of

LABELS_FILE = "features.jsonl"


@dataclass(frozen=True, slots=True)
class FeatureLabel:
    """What is known of one feature.

    precision: of the tokens on which it fires, the share that its label describes. precision_by_language: the
    same for the tokens in each language. recall: by language, of the tokens that its label describes, the
    share on which it fires. max_activation: the largest activation recorded, in feature units. density: the
    share of all tokens on which it fires. What was not recorded is None or absent.
    """

    feature: int
    label: str
    subjects: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    precision: float | None = None
    recall: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    max_activation: float | None = None
    density: float | None = None
    harmful: bool = False
    precision_by_language: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def fit(self) -> float:
        """How well the label fits the feature, from 0 to 1: the harmonic mean of its precision and of its
        mean recall over languages. The precision alone where no recall was recorded; 0 without a precision.
        """
        if self.precision is None or not self.recall:
            return self.precision or 0.0
        recall = sum(self.recall.values()) / len(self.recall)
        return 2.0 * self.precision * recall / ((self.precision + recall) or 1.0)


class Labels:
    """The labels of an SAE's features, in the order of the features; there may be none.

    Raises ValueError if two labels are of the same feature.
    """

    def __init__(self, labels: Iterable[FeatureLabel] = ()) -> None:
        ordered = sorted(labels, key=lambda label: label.feature)
        self._by_feature = {label.feature: label for label in ordered}
        if len(self._by_feature) < len(ordered):
            raise ValueError("two labels are of the same feature")

    @classmethod
    def load(cls, directory: Path, features: int | None = None) -> "Labels":
        """Read `features.jsonl` in `directory`; without that file the labels are empty.

        features: how many features the SAE has; a label beyond them is an error.
        Raises SAEFileError with the line's number for anything that does not fit `FeatureLabel`.
        """
        path = directory / LABELS_FILE
        if not os.path.lexists(path):
            return cls()
        try:
            # Only \n ends a line: JSON strings may hold other separators of Unicode.
            lines = path.read_bytes().decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SAEFileError(path, f"cannot be read: {error}") from error
        seen: dict[int, int] = {}
        labels = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                label = _parse(line)
                if features is not None and label.feature >= features:
                    raise ValueError(f"feature {label.feature} does not exist: there are {features}")
                if label.feature in seen:
                    raise ValueError(f"feature {label.feature} stands in line {seen[label.feature]} already")
            except (ValueError, RecursionError) as error:
                raise SAEFileError(path, f"line {number}: {error}") from error
            seen[label.feature] = number
            labels.append(label)
        return cls(labels)

    def save(self, directory: Path) -> None:
        """Write `features.jsonl` into `directory`, which is made if absent."""
        directory.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(_entry(label), ensure_ascii=False, allow_nan=False) for label in self]
        (directory / LABELS_FILE).write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._by_feature)

    def __iter__(self) -> Iterator[FeatureLabel]:
        return iter(self._by_feature.values())

    def get(self, feature: int) -> FeatureLabel | None:
        """The label of one feature, if it has one."""
        return self._by_feature.get(feature)

    def by_label(self, label: str) -> tuple[FeatureLabel, ...]:
        """All features with this label, whatever its case and accents, those that fit best first."""
        return self._by_words.get(words_of(label), ())

    @cached_property
    def _by_words(self) -> dict[tuple[str, ...], tuple[FeatureLabel, ...]]:
        groups: dict[tuple[str, ...], list[FeatureLabel]] = {}
        for label in self:
            groups.setdefault(words_of(label.label), []).append(label)
        return {
            words: tuple(sorted(labels, key=lambda label: -label.fit)) for words, labels in groups.items()
        }

    @cached_property
    def _index(self) -> LabelIndex:
        return LabelIndex(self)

    def ready(self) -> None:
        """Make what `find` and `by_label` need, so that the first call need not wait for it: half a minute
        for a million labels."""
        _ = self._index, self._ordered, self._by_words

    @cached_property
    def _ordered(self) -> tuple[FeatureLabel, ...]:
        return tuple(self)

    def find(self, query: str) -> Matches:
        """The labels that hold every word of `query`, best first; places are those of `at`. LabelIndex.find
        says the order."""
        return self._index.find(query)

    def at(self, place: int) -> FeatureLabel:
        """The label at a place, counted from 0 in the order of the features."""
        return self._ordered[place]


_KEYS = tuple(field.name for field in fields(FeatureLabel))
_BY_LANGUAGE = ("recall", "precision_by_language")


def _entry(label: FeatureLabel) -> dict[str, object]:
    entry = {name: getattr(label, name) for name in _KEYS}
    return entry | {name: dict(entry[name]) for name in _BY_LANGUAGE}


def _parse(line: str) -> FeatureLabel:
    """The label in one line of the file. Raises ValueError, which names the field."""
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    unknown = sorted(entry.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(_KEYS)}")
    feature, label, harmful = entry.get("feature"), entry.get("label"), entry.get("harmful", False)
    if isinstance(feature, bool) or not isinstance(feature, int) or feature < 0:
        raise ValueError(f"feature is {feature!r}, not a whole number of at least 0")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label is {label!r}, not a text")
    if not isinstance(harmful, bool):
        raise ValueError(f"harmful is {harmful!r}, not true or false")
    return FeatureLabel(
        feature=feature,
        label=label,
        subjects=_texts("subjects", entry.get("subjects", [])),
        languages=_texts("languages", entry.get("languages", [])),
        precision=_optional("precision", entry.get("precision"), 1.0),
        recall=_shares("recall", entry.get("recall", {})),
        max_activation=_optional("max_activation", entry.get("max_activation"), 1e30),
        density=_optional("density", entry.get("density"), 1.0),
        harmful=harmful,
        precision_by_language=_shares("precision_by_language", entry.get("precision_by_language", {})),
    )


def _shares(name: str, value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}, not an object of numbers by language")
    return MappingProxyType(
        {language: _number(f"{name}.{language}", share, 1.0) for language, share in value.items()}
    )


def _texts(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {value!r}, not a list of texts")
    return tuple(value)


def _optional(name: str, value: object, largest: float) -> float | None:
    return None if value is None else _number(name, value, largest)


def _number(name: str, value: object, largest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= largest:
        raise ValueError(f"{name} is {value!r}, not a number from 0 to {largest:g}")
    return float(value)
