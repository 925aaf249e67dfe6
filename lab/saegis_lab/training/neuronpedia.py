"""Neuronpedia's explanation files: what others found features to stand for, read as labels.

An export holds files `batch-0.jsonl.gz`, `batch-1.jsonl.gz`, ... of one JSON object a line; of its keys
these are read: modelId and layer (which together name the SAE), index (a number, written as a text),
description, and explanationModelName. A file may also be one JSON list of such objects.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from saegis_lab.records import InputFileError
from saegis_server.json_text import parse_json
from saegis_server.sae.labels import FeatureLabel, Labels


@dataclass(frozen=True, slots=True)
class Explanation:
    """What one feature stands for, in words, as `explained_by` (a model's name, "" if not told) put it."""

    source: str
    feature: int
    description: str
    explained_by: str


@dataclass(frozen=True, slots=True)
class Explanations:
    """The explanations of one SAE's features, the first for each. source: Neuronpedia's name of the SAE, such
    as gpt2-small/8-res-jb. left: how many further explanations of the same features there were."""

    source: str
    by_feature: dict[int, str]
    left: int


def read_explanations(paths: Sequence[Path], explained_by: str | None = None) -> Explanations:
    """The explanations in some files, or only those of one model.

    Of several of a feature the first counts; those without words are left out. Raises InputFileError, with
    the line, for anything else than described above, for files of several SAEs, and where none is left.
    """
    found: dict[int, str] = {}
    source, left, models = "", 0, set()
    for path in paths:
        for number, explanation in _explanations(path):
            if source and explanation.source != source:
                reason = (
                    f"explains features of {explanation.source}, others are of {source}; give files of one"
                )
                raise InputFileError(path, reason, number)
            source = explanation.source
            models.add(explanation.explained_by)
            if not explanation.description or explained_by not in (None, explanation.explained_by):
                continue
            left += explanation.feature in found
            found.setdefault(explanation.feature, explanation.description)
    if not found:
        told = f" by {explained_by!r}; there are some by {', '.join(sorted(models))}" if models else ""
        raise InputFileError(paths[0], f"there are no explanations in it{told}")
    return Explanations(source, found, left)


def relabelled(labels: Labels, explanations: Explanations, features: int) -> Labels:
    """The labels with those of the explained features replaced.

    What was measured of a feature itself stays: its maximum, its density, its subjects and languages, and
    whether it is harmful. What was measured of its old label goes. Raises ValueError for an explanation of a
    feature that does not exist among `features`.
    """
    if (beyond := max(explanations.by_feature)) >= features:
        raise ValueError(
            f"{explanations.source} explains feature {beyond}; this SAE has features 0 to {features - 1}"
        )
    made = {label.feature: label for label in labels}
    for feature, description in explanations.by_feature.items():
        known = made.get(feature, FeatureLabel(feature, description))
        none = MappingProxyType[str, float]({})
        made[feature] = replace(
            known, label=description, precision=None, recall=none, precision_by_language=none
        )
    return Labels(made.values())


def _explanations(path: Path) -> Iterator[tuple[int | None, Explanation]]:
    """The explanations in a file, each with its line; None in a list."""
    for number, entry in _entries(path):
        try:
            yield number, _explanation(entry)
        except ValueError as error:
            raise InputFileError(path, str(error), number) from error


def _entries(path: Path) -> Iterator[tuple[int | None, object]]:
    lines = enumerate(_lines(path), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        try:
            if number == 1 and line.lstrip().startswith("["):
                entries = parse_json(line + "".join(rest for _, rest in lines))
                yield from ((None, entry) for entry in (entries if isinstance(entries, list) else ()))
            else:
                yield number, parse_json(line)
        except (ValueError, RecursionError) as error:
            raise InputFileError(path, f"not JSON: {error}", number) from error


def _lines(path: Path) -> Iterable[str]:
    """The lines of a file, which may be compressed."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield line.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputFileError(path, f"cannot be read: {error}") from error


def _explanation(entry: object) -> Explanation:
    """One explanation. Raises ValueError that names the key."""
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    texts: dict[str, str] = {}
    for key in ("modelId", "layer", "index", "description"):
        value = entry.get(key)
        if not isinstance(value, str):
            raise ValueError(f"{key} is {value!r}, not a text")
        texts[key] = value
    index, by = texts["index"], entry.get("explanationModelName")
    if not (index.isascii() and index.isdigit() and len(index) < 10):
        raise ValueError(f"index is {index!r}, not a number of a feature")
    # A label stands on one line.
    description = " ".join(texts["description"].split())
    source = f"{texts['modelId']}/{texts['layer']}"
    return Explanation(source, int(index), description, by if isinstance(by, str) else "")
