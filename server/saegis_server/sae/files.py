"""The files of an SAE, in a local folder or on the Hugging Face hub: finding and reading them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.examples import EXAMPLES_FILE
from saegis_server.sae.formats import LAYOUTS
from saegis_server.sae.formats.unread import PICKLES, what_is_there
from saegis_server.sae.labels import LABELS_FILE
from saegis_server.sae.layout import NO_RELEASE, SAMPLE_FILE, Layout, Release
from saegis_server.sae.releases import by_name, said_of, table_file

#: The only files of an SAE's folder that are read, and so the only ones that are downloaded.
FILES = tuple(
    dict.fromkeys(
        (*(name for layout in LAYOUTS for name in layout.files), LABELS_FILE, EXAMPLES_FILE, SAMPLE_FILE)
    )
)
_KNOWN = ", or ".join(" and ".join(layout.files) for layout in LAYOUTS)
_FIRST = tuple(layout.files[0] for layout in LAYOUTS)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)(?:@(?P<revision>[A-Za-z0-9._/-]+))?"
)
_SNAPSHOT = re.compile(r"models--(?P<repo>[^/]+--[^/]+)/snapshots/[^/]+/?(?P<folder>.*)")


@dataclass(frozen=True, slots=True)
class Found:
    """The folder of an SAE, and what is said of it beside its files."""

    folder: Path
    release: Release


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A folder or a file of a repository on the hub, and what is said of the SAE there. spec: as it was
    named."""

    repo: str
    path: str
    revision: str | None
    release: Release
    spec: str


def load_sae(path: Path, *, name: str | None = None, release: Release = NO_RELEASE) -> SparseAutoencoder:
    """Read the SAE in the directory `path`. Nothing is unpickled; every tensor is copied to float32.

    name: its id; by default the directory's name. release: what is said of it beside its files.
    Raises SAEFileError, naming the file and the reason, for anything that cannot be read, honoured or served.
    """
    try:
        if not path.is_dir():
            raise SAEFileError(path, f"not a directory; an SAE is a directory with {_KNOWN}")
        return _layout(path).read(path, name or path.resolve().name, release)
    except OSError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error


def check_sae(spec: str) -> None:
    """Raise SAEFileError for faults of an SAE that are cheap to find: no such directory, hub id or name, or a
    local directory whose description cannot be honoured. Downloads nothing."""
    location = _where(spec)
    if isinstance(location, Path):
        _layout(location).check(location)
    else:
        _refuse_file(spec, location.path)


def resolve_sae(spec: str) -> Found:
    """The directory with the SAE's files: `spec` itself if it is one, else a snapshot of what it names on the
    hub, downloaded or from the cache (HF_HUB_OFFLINE allows only the cache).

    It names `owner/repo[/folder][@revision]`, or as SAELens `release/sae_id`, or as Neuronpedia
    `model/source`. Raises SAEFileError if there is no such directory, or the hub does not give it.
    """
    location = _where(spec)
    if isinstance(location, Path):
        return Found(location, _release_of_snapshot(location))
    _refuse_file(spec, location.path)
    prefix = f"{location.path}/" if location.path else ""
    # Whole names and no pattern: in huggingface_hub's patterns * crosses folders.
    path = download(location, [prefix + name for name in FILES]) / location.path
    if not any((path / name).is_file() for layout in LAYOUTS for name in layout.files):
        lacking = " or ".join(prefix + name for name in _FIRST)
        raise SAEFileError(spec, f"the repository {location.repo} has no {lacking}")
    return Found(path, location.release)


def hub_place(spec: str) -> HubPlace | None:
    """Where on the hub `spec` is; None if it is a local directory. Raises SAEFileError."""
    location = _where(spec)
    return None if isinstance(location, Path) else location


def download(place: HubPlace, names: Sequence[str]) -> Path:
    """A snapshot of a repository with these files, as far as it has them. Raises SAEFileError."""
    try:
        return Path(
            huggingface_hub.snapshot_download(place.repo, revision=place.revision, allow_patterns=list(names))
        )
    except (OSError, ValueError) as error:
        raise SAEFileError(
            place.spec,
            f"neither a local directory nor to be had from the hub: {type(error).__name__}: {error}",
        ) from error


def _release_of_snapshot(folder: Path) -> Release:
    """What is said of the SAE in a folder, if that is a snapshot in the hub's cache."""
    snapshot = _SNAPSHOT.search(str(folder.resolve()))
    return said_of(snapshot["repo"].replace("--", "/", 1), snapshot["folder"]) if snapshot else NO_RELEASE


def _refuse_file(spec: str, name: str) -> None:
    if name.endswith(".safetensors"):
        raise SAEFileError(spec, f"is a single file; convert it with: saegis sae convert {spec}")
    if name.endswith(tuple(pattern.lstrip("*") for pattern in PICKLES)):
        raise SAEFileError(
            spec, f"is a pickle of torch, and a server opens none; convert it with: saegis sae convert {spec}"
        )


def _layout(path: Path) -> Layout:
    """The layout of which a folder holds the most files; of several with as many, the first.

    Raises SAEFileError if it holds all of none, and something that is recognised but not read.
    """
    held = {layout: sum((path / name).exists() for name in layout.files) for layout in LAYOUTS}
    best = max(LAYOUTS, key=held.__getitem__)
    if held[best] < len(best.files) and (there := what_is_there(path, _FIRST)):
        raise SAEFileError(path, there)
    return best


def _where(spec: str) -> Path | HubPlace:
    """The directory that `spec` is, or what it names on the hub. Raises SAEFileError."""
    try:
        local = Path(spec).expanduser()
        is_directory, exists = local.is_dir(), local.exists()
    except (OSError, RuntimeError) as error:
        raise SAEFileError(spec, f"cannot be looked up: {error}") from error
    if is_directory:
        return local
    if exists:
        _refuse_file(spec, local.name)
        raise SAEFileError(spec, f"is a file; give the directory that holds {_KNOWN}")
    if entry := by_name(spec):
        return HubPlace(entry.repo, entry.path, None, entry.said, spec)
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id is None:
        raise SAEFileError(
            spec,
            "no such directory, and not a hub id of the form owner/repo[/folder][@revision], nor a name of "
            "SAELens (release/sae_id) or Neuronpedia (model/source)"
            + ("" if table_file() else ", which are known where the package sae-lens is installed"),
        )
    folder = hub_id["folder"].lstrip("/")
    return HubPlace(hub_id["repo"], folder, hub_id["revision"], said_of(hub_id["repo"], folder), spec)
