"""Releases: the names that people have for SAEs, by SAELens's own table, which its package brings along.

SAELens's `release/sae_id` and Neuronpedia's `model/source` are looked up in it, and what it says of an SAE
beside its files: the norm scaling factor, and fields that count instead of those of the files. Nothing of
SAELens is imported, and nothing is asked of the network.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.layout import NO_RELEASE, Release

_TABLE = "pretrained_saes.yaml"
#: The repositories whose SAEs read a centred stream, for where SAELens is not installed.
CENTRED = frozenset(
    {
        "jbloom/GPT2-Small-SAEs-Reformatted",
        "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
        "tommmcgrath/gpt2-small-mlp-out-saes",
    }
)
_CENTRED_OVERRIDES = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}


@dataclass(frozen=True, slots=True)
class Entry:
    """One SAE of the table. path: the folder or file in the repository. layout: SAELens's name of its loader.
    neuronpedia: its name there, if it has one."""

    release: str
    sae_id: str
    repo: str
    path: str
    layout: str
    model: str
    neuronpedia: str | None
    said: Release


def table_file() -> Path | None:
    """SAELens's table, if its package is installed."""
    found = importlib.util.find_spec("sae_lens")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / _TABLE
    return path if path.is_file() else None


@cache
def _text() -> str:
    path = table_file()
    return path.read_text(encoding="utf-8") if path else ""


@cache
def _blocks() -> Mapping[str, str]:
    """The part of the table of each release. All of it is long, and takes seconds to parse."""
    parts = re.split(r"(?m)^(?=[^\s#-])", _text())
    return {part.partition(":")[0].strip("\"' "): part for part in parts if ":" in part}


def release_names() -> tuple[str, ...]:
    """All releases, in the table's order; empty where SAELens is not installed."""
    return tuple(_blocks())


@cache
def release(name: str) -> tuple[Entry, ...]:
    """The SAEs of a release; empty if there is no such."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table: dict[str, Any] = yaml.load(_blocks().get(name, ""), Loader=loader) or {}  # noqa: S506 - it is safe
    return tuple(_entries(name, table[name])) if name in table else ()


def _entries(release: str, content: Mapping[str, Any]) -> Iterator[Entry]:
    overrides = content.get("config_overrides") or {}
    for sae in content["saes"]:
        name = f"{release}/{sae['id']}"
        said = Release(sae.get("norm_scaling_factor"), overrides, name)
        yield Entry(
            release,
            sae["id"],
            content["repo_id"],
            str(sae["path"]),
            content.get("conversion_func") or "sae_lens",
            content["model"],
            sae.get("neuronpedia"),
            said,
        )


def by_name(name: str) -> Entry | None:
    """The SAE that SAELens calls `release/sae_id` or Neuronpedia `model/source`; None if neither does.

    Raises SAEFileError if the release exists and has no such SAE.
    """
    first, _, rest = name.partition("/")
    if not rest:
        return None
    if first in _blocks():
        for entry in release(first):
            if entry.sae_id == rest:
                return entry
        ids = [entry.sae_id for entry in release(first)]
        near = difflib.get_close_matches(rest, ids, 4, 0.4) or ids[:4]
        raise SAEFileError(name, f"SAELens's release {first} has no SAE {rest}; it has {', '.join(near)}")
    return next((entry for entry in _mentioning(name) if entry.neuronpedia == name), None)


def said_of(repo: str, folder: str) -> Release:
    """What the table says of the SAE in a folder of a repository."""
    for entry in _mentioning(repo):
        if (entry.repo, entry.path) == (repo, folder):
            return entry.said
    return Release(overrides=_CENTRED_OVERRIDES) if repo in CENTRED else NO_RELEASE


def _mentioning(text: str) -> Iterator[Entry]:
    """The SAEs of all releases whose part of the table has a text."""
    for name, block in _blocks().items():
        if text in block:
            yield from release(name)
