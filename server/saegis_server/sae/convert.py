"""Conversion: reads SAEs in any layout, pickles of torch among them, which a server never opens."""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from safetensors import safe_open

from saegis_server.sae import unpickle
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.files import download, hub_place, load_sae, resolve_sae
from saegis_server.sae.formats import PICKLED
from saegis_server.sae.formats.dictionary_learning import FILE as DICTIONARY
from saegis_server.sae.formats.mwhanna import CONFIG as TRANSCODERS_CONFIG
from saegis_server.sae.formats.mwhanna import read_transcoder
from saegis_server.sae.formats.pickled import Checkpoint
from saegis_server.sae.formats.unread import PICKLES
from saegis_server.sae.layout import Fields, read_json, read_safetensors, refuse_growth, refuse_pointer

_CONFIG, _SINGLE = "config.json", ".safetensors"
_ENDINGS = tuple(pattern.lstrip("*") for pattern in PICKLES)
_PICKLED = "a pickle's"


def read_any(spec: str) -> SparseAutoencoder:
    """The SAE that `spec` names: whatever a server takes, or a file that torch unpickles or of a single
    transcoder, here or on the hub (`owner/repo/path/file.pt`). A pickle is opened in a process of its own.

    Raises SAEFileError, naming the file and the reason.
    """
    try:
        local = Path(spec).expanduser()
        is_file = local.is_file()
    except (OSError, RuntimeError) as error:
        raise SAEFileError(spec, f"cannot be looked up: {error}") from error
    if is_file:
        return read_transcoder(local) if local.suffix == _SINGLE else read_pickle(local)
    place = hub_place(spec)
    if place is None:
        pickle = local / DICTIONARY
    elif place.path.endswith(_SINGLE):
        beside = str(PurePosixPath(place.path).parent / TRANSCODERS_CONFIG)
        single = download(place, [place.path, beside]) / place.path
        if not single.is_file():
            raise SAEFileError(spec, f"the repository {place.repo} has no {place.path}")
        return read_transcoder(single)
    elif place.path.endswith(_ENDINGS):
        beside = str(PurePosixPath(place.path).parent / _CONFIG)
        pickle = download(place, [place.path, beside]) / place.path
        if not pickle.is_file():
            raise SAEFileError(spec, f"the repository {place.repo} has no {place.path}")
    else:
        prefix = f"{place.path}/" if place.path else ""
        pickle = download(place, [prefix + DICTIONARY, prefix + _CONFIG]) / place.path / DICTIONARY
    if pickle.is_file():
        return read_pickle(pickle)
    found = resolve_sae(spec)
    return load_sae(found.folder, release=found.release)


def read_pickle(path: Path) -> SparseAutoencoder:
    """The SAE in a file that torch unpickles, opened in a process of its own. Raises SAEFileError."""
    with tempfile.TemporaryDirectory(prefix="saegis-convert-") as folder:
        plain = Path(folder) / "plain.safetensors"
        _unpickle(path, plain)
        return read_plain(path, plain)


def read_plain(path: Path, plain: Path) -> SparseAutoencoder:
    """The SAE of the pickle at `path`, from what `unpickle` has made of it. Raises SAEFileError."""
    config = path.parent / _CONFIG
    described = read_json(config, "dictionary_learning's") if config.is_file() else {}
    with safe_open(plain, framework="pt") as file:
        stated = json.loads((file.metadata() or {}).get("stated", "{}"))
    tensors = read_safetensors(plain, _PICKLED)
    checkpoint = Checkpoint(path, tensors, stated, Fields(config, described), str(path.resolve().parent))
    for layout in PICKLED:
        if layout.claims(checkpoint):
            return layout.build(checkpoint)
    held = ", ".join(sorted(tensors)[:8]) or "no tensors"
    known = ", ".join(layout.name for layout in PICKLED)
    raise SAEFileError(path, f"its layout is not known; it holds {held}. Known are those of {known}")


def _unpickle(path: Path, target: Path) -> None:
    """Write the tensors of a pickle as safetensors, from a process that can do nothing else."""
    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(64))
        if zipfile.is_zipfile(path):
            refuse_growth(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    done = subprocess.run(  # noqa: S603 - this Python, with a program of ours
        [sys.executable, "-I", unpickle.__file__, path.resolve(), target],
        env=environment,
        cwd=target.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0 or not target.is_file():
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
        raise SAEFileError(path, f"torch does not unpickle it with weights_only: {reason[:300]}")
