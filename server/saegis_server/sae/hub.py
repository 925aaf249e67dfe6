"""Where an SAE's files are: a local directory, or a folder of a repository on the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub

from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.labels import LABELS_FILE

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
#: A text beside an SAE on which the server checks it.
SAMPLE_FILE = "sample.txt"
#: All that is ever downloaded from an SAE's folder, which is all that is read from one; never a pickle.
FILES = (CONFIG_FILE, WEIGHTS_FILE, LABELS_FILE, SAMPLE_FILE)
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_HUB_ID = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?P<folder>(?:/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*)(?:@(?P<revision>[A-Za-z0-9._/-]+))?"
)


def resolve_sae(spec: str) -> Path:
    """The directory with the SAE's files: `spec` itself if it is one, else a snapshot of the hub's
    `owner/repo[/folder][@revision]`, downloaded or from the cache (HF_HUB_OFFLINE allows only the cache).

    Raises SAEFileError if there is no such directory, or the hub does not give it.
    """
    found = check_spec(spec)
    if isinstance(found, Path):
        return found
    folder = found["folder"].lstrip("/")
    # Whole names and no pattern: in huggingface_hub's patterns * crosses folders.
    wanted = [f"{folder}/{name}" if folder else name for name in FILES]
    try:
        snapshot = huggingface_hub.snapshot_download(
            found["repo"], revision=found["revision"], allow_patterns=wanted
        )
    except (OSError, ValueError) as error:
        raise SAEFileError(
            spec, f"neither a local directory nor to be had from the hub: {type(error).__name__}: {error}"
        ) from error
    path = Path(snapshot) / folder
    if not (path / CONFIG_FILE).is_file():
        raise SAEFileError(spec, f"the repository {found['repo']} has no {wanted[0]}")
    return path


def check_spec(spec: str) -> Path | re.Match[str]:
    """The directory that `spec` is, or the parts of a hub id; downloads nothing. Raises SAEFileError."""
    try:
        local = Path(spec).expanduser()
        is_directory, exists = local.is_dir(), local.exists()
    except (OSError, RuntimeError) as error:
        raise SAEFileError(spec, f"cannot be looked up: {error}") from error
    if is_directory:
        return local
    if exists:
        raise SAEFileError(spec, f"is a file; give the directory that holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id is None:
        raise SAEFileError(
            spec, "no such directory, and not a hub id of the form owner/repo[/folder][@revision]"
        )
    return hub_id
