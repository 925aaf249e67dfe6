"""Layouts of SAE files, and the readers that all of them share, which read a file exactly or refuse it."""

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saegis_server.json_text import parse_json
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.errors import SAEFileError
from saegis_server.sae.mapped import MAPPED_DTYPES, MAPPED_FROM

#: A text that may lie beside an SAE in any layout. The server checks the SAE on it.
SAMPLE_FILE = "sample.txt"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay out an SAE in a folder.

    files: the names of its files in the folder, the one that describes the SAE first. A folder has the layout
    of which it holds the most files. check: raises SAEFileError for faults of a folder that show without the
    weights. read: reads the SAE, given the folder, its id and the normalisation factor of its release, if
    any. It unpickles nothing, and raises SAEFileError or OSError for all that it cannot read or honour.
    """

    files: tuple[str, ...]
    check: Callable[[Path], object]
    read: Callable[[Path, str, float | None], SparseAutoencoder]


def read_json(path: Path, layout: str) -> dict[str, object]:
    """The JSON object in a file that every SAE in `layout` has. Raises SAEFileError."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SAEFileError(
            path, f"the file does not exist; an SAE in {layout} layout has a {path.name}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    try:
        document = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise SAEFileError(path, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SAEFileError(path, "not a JSON object")
    return document


def read_safetensors(path: Path, layout: str, mapped: Collection[str] = ()) -> dict[str, Tensor]:
    """All tensors of a file as float32 copies, since a mapped file may change while the server runs.

    mapped: those that stay in the file as they are, see `large_matrices`. Raises SAEFileError, also for
    tensors that are not of floats.
    """
    if not path.is_file():
        raise SAEFileError(path, f"the file does not exist; weights in {layout} layout have this name")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                tensors[name] = file.get_tensor(name)
                if tensors[name].dtype not in _FLOATS:
                    kind = str(tensors[name].dtype).removeprefix("torch.")
                    raise SAEFileError(path, f"{name} is of type {kind}, not a float of 16, 32 or 64 bits")
                if name not in mapped:
                    tensors[name] = tensors[name].to(torch.float32, copy=True)
    except SafetensorError as error:
        raise SAEFileError(path, f"not a whole safetensors file: {error}") from error
    except (RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    return tensors


def large_matrices(path: Path) -> frozenset[str]:
    """The tensors of a safetensors file that are too large to be copied; none for a file that cannot be read.

    Only where nothing is folded into them: they may be of 16 bits.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - as above
            return frozenset(
                name
                for name, part in parts.items()
                if part.get_dtype() in MAPPED_DTYPES
                and len(part.get_shape()) == 2
                and 4 * math.prod(part.get_shape()) > MAPPED_FROM
            )
    except (SafetensorError, OSError):
        return frozenset()


@dataclass(frozen=True, slots=True)
class Weight:
    """How many bytes the tensors of a file take of memory as float32 copies, and how many stay there."""

    copied: int
    mapped: int


def weigh(path: Path) -> Weight:
    """What the tensors of a safetensors file will take, by its header. Raises SAEFileError."""
    stays = large_matrices(path)
    copied = mapped = 0
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - as above
                part = file.get_slice(name)
                size = math.prod(part.get_shape())
                if name in stays:
                    mapped += size * MAPPED_DTYPES[part.get_dtype()].itemsize
                else:
                    copied += 4 * size
    except SafetensorError as error:
        raise SAEFileError(path, f"not a whole safetensors file: {error}") from error
    return Weight(copied, mapped)


def files_digest(*paths: Path) -> str:
    """SHA-256 over the files' bytes, one after the other."""
    state = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()
