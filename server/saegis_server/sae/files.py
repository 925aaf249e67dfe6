"""The files of an SAE, in a local folder or on the Hugging Face hub: finding and reading them."""

import re
from pathlib import Path

import huggingface_hub

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.examples import EXAMPLES_FILE
from saegis_server.sae.formats import LAYOUTS
from saegis_server.sae.labels import LABELS_FILE
from saegis_server.sae.layout import SAMPLE_FILE, Layout

#: The only files of an SAE's folder that are read, and so the only ones that are downloaded.
FILES = tuple(
    dict.fromkeys(
        (*(name for layout in LAYOUTS for name in layout.files), LABELS_FILE, EXAMPLES_FILE, SAMPLE_FILE)
    )
)
_KNOWN = ", or ".join(" and ".join(layout.files) for layout in LAYOUTS)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)(?:@(?P<revision>[A-Za-z0-9._/-]+))?"
)


def load_sae(
    path: Path, *, name: str | None = None, norm_scaling_factor: float | None = None
) -> SparseAutoencoder:
    """Read the SAE in the directory `path`. Nothing is unpickled; every tensor is copied to float32.

    name: its id; by default the directory's name. norm_scaling_factor: the factor that the release gives, for
    an SAE with `normalize_activations: expected_average_only_in` whose files do not state it.
    Raises SAEFileError, naming the file and the reason, for anything that cannot be read or honoured.
    """
    try:
        if not path.is_dir():
            raise SAEFileError(path, f"not a directory; an SAE is a directory with {_KNOWN}")
        return _layout(path).read(path, name or path.resolve().name, norm_scaling_factor)
    except OSError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error


def check_sae(spec: str) -> None:
    """Raise SAEFileError for faults of an SAE that are cheap to find: no such directory or hub id, or a local
    directory whose description cannot be honoured. Downloads nothing."""
    location = _where(spec)
    if isinstance(location, Path):
        _layout(location).check(location)


def resolve_sae(spec: str) -> Path:
    """The directory with the SAE's files: `spec` itself if it is one, else a snapshot of the hub's
    `owner/repo[/folder][@revision]`, downloaded or from the cache (HF_HUB_OFFLINE allows only the cache).

    Raises SAEFileError if there is no such directory, or the hub does not give it.
    """
    location = _where(spec)
    if isinstance(location, Path):
        return location
    inside = location["folder"].lstrip("/")
    prefix = f"{inside}/" if inside else ""
    # Whole names and no pattern: in huggingface_hub's patterns * crosses folders.
    names = [prefix + name for name in FILES]
    try:
        snapshot = huggingface_hub.snapshot_download(
            location["repo"], revision=location["revision"], allow_patterns=names
        )
    except (OSError, ValueError) as error:
        raise SAEFileError(
            spec, f"neither a local directory nor to be had from the hub: {type(error).__name__}: {error}"
        ) from error
    path = Path(snapshot) / inside
    if not any((path / layout.files[0]).is_file() for layout in LAYOUTS):
        lacking = " or ".join(prefix + layout.files[0] for layout in LAYOUTS)
        raise SAEFileError(spec, f"the repository {location['repo']} has no {lacking}")
    return path


def _layout(path: Path) -> Layout:
    """The layout of which a folder holds the most files; of several with as many, the first."""
    return max(LAYOUTS, key=lambda layout: sum((path / name).exists() for name in layout.files))


def _where(spec: str) -> Path | re.Match[str]:
    """The directory that `spec` is, or the parts of a hub id. Raises SAEFileError."""
    try:
        local = Path(spec).expanduser()
        is_directory, exists = local.is_dir(), local.exists()
    except (OSError, RuntimeError) as error:
        raise SAEFileError(spec, f"cannot be looked up: {error}") from error
    if is_directory:
        return local
    if exists:
        raise SAEFileError(spec, f"is a file; give the directory that holds {_KNOWN}")
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id is None:
        raise SAEFileError(
            spec, "no such directory, and not a hub id of the form owner/repo[/folder][@revision]"
        )
    return hub_id
