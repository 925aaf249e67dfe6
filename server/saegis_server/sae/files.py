"""An SAE's files: where they are, a folder of this machine or of the Hugging Face hub, and reading them."""

import re
from pathlib import Path

import huggingface_hub

from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.formats import LAYOUTS
from saegis_server.sae.labels import LABELS_FILE
from saegis_server.sae.layout import SAMPLE_FILE, Layout

#: All that is ever downloaded from an SAE's folder, which is all that is read from one.
FILES = tuple(dict.fromkeys((*(name for each in LAYOUTS for name in each.files), LABELS_FILE, SAMPLE_FILE)))
_KNOWN = ", or ".join(" and ".join(each.files) for each in LAYOUTS)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)(?:@(?P<revision>[A-Za-z0-9._/-]+))?"
)


def load_sae(
    path: Path, *, name: str | None = None, norm_scaling_factor: float | None = None
) -> SparseAutoencoder:
    """Read the SAE in the directory `path`. Nothing is unpickled; every tensor is copied to float32.

    name: the id to know it by; by default the directory's name. norm_scaling_factor: for an SAE with
    `normalize_activations: expected_average_only_in` whose files do not state it, the factor that
    its release gives.
    Raises SAEFileError for anything that cannot be read or honoured, naming the file and the reason.
    """
    try:
        if not path.is_dir():
            raise SAEFileError(path, f"not a directory; an SAE is a directory with {_KNOWN}")
        return _layout(path).read(path, name or path.resolve().name, norm_scaling_factor)
    except OSError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error


def check_sae(spec: str) -> None:
    """Raise SAEFileError for what is wrong with an SAE as far as that costs nothing: no such directory nor
    hub id, or a directory of this machine whose description cannot be honoured. Downloads nothing."""
    found = _where(spec)
    if isinstance(found, Path):
        _layout(found).check(found)


def resolve_sae(spec: str) -> Path:
    """The directory with the SAE's files: `spec` itself if it is one, else a snapshot of the hub's
    `owner/repo[/folder][@revision]`, downloaded or from the cache (HF_HUB_OFFLINE allows only the cache).

    Raises SAEFileError if there is no such directory, or the hub does not give it.
    """
    found = _where(spec)
    if isinstance(found, Path):
        return found
    inside = found["folder"].lstrip("/")
    prefix = f"{inside}/" if inside else ""
    # Whole names and no pattern: in huggingface_hub's patterns * crosses folders.
    wanted = [prefix + name for name in FILES]
    try:
        snapshot = huggingface_hub.snapshot_download(
            found["repo"], revision=found["revision"], allow_patterns=wanted
        )
    except (OSError, ValueError) as error:
        raise SAEFileError(
            spec, f"neither a local directory nor to be had from the hub: {type(error).__name__}: {error}"
        ) from error
    path = Path(snapshot) / inside
    if not any((path / each.files[0]).is_file() for each in LAYOUTS):
        lacking = " or ".join(prefix + each.files[0] for each in LAYOUTS)
        raise SAEFileError(spec, f"the repository {found['repo']} has no {lacking}")
    return path


def _layout(path: Path) -> Layout:
    """The layout of which a folder holds the most files; of two alike, and in an empty folder, the first."""
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
