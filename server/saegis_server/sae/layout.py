"""Layouts of SAE files, and the readers that all of them share, which read a file exactly or refuse it."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
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
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "UTF-8",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_POINTER = b"version https://git-lfs"
#: Weights hardly compress; an archive that grows more than this is no archive of weights.
_MOST_GROWTH = 20
_LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Release:
    """What is said of an SAE beside its files: by the table of its release, or by who loads it.

    norm_scaling_factor: the factor that its release gives, where its files do not state it. overrides: fields
    that count instead of those of its files. name: how the release calls it.
    """

    norm_scaling_factor: float | None = None
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    name: str = ""


NO_RELEASE = Release()


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to lay out an SAE in a folder.

    name: whose layout it is. files: the names of its files in the folder, the one that describes the SAE
    first. A folder has the layout of which it holds the most files. check: raises SAEFileError for faults of
    a folder that show without the weights. read: reads the SAE, given the folder, its id and what its release
    says of it. It unpickles nothing, and raises SAEFileError or OSError for all that it cannot read or
    honour. origin: what it reads, in words, for the documentation.
    """

    name: str
    files: tuple[str, ...]
    check: Callable[[Path], object]
    read: Callable[[Path, str, Release], SparseAutoencoder]
    origin: str


class Fields:
    """The fields of a description, each read with a check that names the file and the field."""

    def __init__(self, path: Path, values: Mapping[str, object]) -> None:
        self.path = path
        self.values = values

    def refuse(self, reason: str) -> SAEFileError:
        """The error that the file cannot be honoured."""
        return SAEFileError(self.path, reason)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string that can be printed. Raises SAEFileError, as all of these do."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refuse(f"{key} is {value!r}, not a string")
        if not value.isprintable():
            raise self.refuse(f"{key} is {value!r}, which holds characters that cannot be printed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(f"{key} is {value!r}, not true or false")
        return value

    def count(self, key: str) -> int:
        """A positive whole number."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(f"{key} is {value!r}, not a positive whole number")
        return value

    def number(self, key: str, least: float = 0.0) -> float | None:
        """A finite number, if it is stated."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(f"{key} is {value!r}, not a number")
        if not least <= value <= _LARGEST:
            raise self.refuse(f"{key} is {value!r}, not a finite number of at least {least:g}")
        return float(value)

    def part(self, key: str) -> "Fields":
        """The object under a key; empty if there is none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.refuse(f"{key} is not an object")
        return Fields(self.path, value)


def read_json(path: Path, layout: str) -> dict[str, object]:
    """The JSON object in a file that every SAE in `layout` has. Raises SAEFileError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SAEFileError(
            path, f"the file does not exist; an SAE in {layout} layout has a {path.name}"
        ) from None
    except OSError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    refuse_pointer(path, content)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            raise SAEFileError(
                path, f"it begins with the byte-order mark of {encoding}; save it as UTF-8 without one"
            )
    try:
        document = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise SAEFileError(path, f"cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise SAEFileError(path, f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SAEFileError(path, "not a JSON object")
    return document


def refuse_pointer(path: Path, content: bytes) -> None:
    """Raise SAEFileError if `content`, the beginning of a file, is that of a pointer of Git LFS."""
    if content.startswith(_POINTER):
        raise SAEFileError(
            path, "is a pointer of Git LFS and not the file itself; fetch it with: git lfs pull"
        )


def _opened(path: Path, layout: str) -> None:
    if not path.is_file():
        raise SAEFileError(path, f"the file does not exist; weights in {layout} layout have this name")
    with path.open("rb") as file:
        refuse_pointer(path, file.read(len(_POINTER)))


def read_safetensors(path: Path, layout: str, mapped: Collection[str] = ()) -> dict[str, Tensor]:
    """All tensors of a file as float32 copies, since a mapped file may change while the server runs.

    mapped: those that stay in the file as they are, see `large_matrices`. Raises SAEFileError, also for
    tensors that are not of floats.
    """
    _opened(path, layout)
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


def read_npz(path: Path, layout: str) -> dict[str, Tensor]:
    """All arrays of numpy's archive as float32 tensors; objects, which would be unpickled, are refused.

    Raises SAEFileError, also for an archive that says it holds far more than its size.
    """
    _opened(path, layout)
    tensors: dict[str, Tensor] = {}
    try:
        refuse_growth(path)
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = arrays[name]
                if not isinstance(array, np.ndarray) or array.dtype not in (
                    np.float16,
                    np.float32,
                    np.float64,
                ):
                    kind = getattr(array, "dtype", "bytes")
                    raise SAEFileError(path, f"{name} is of type {kind}, not a float of 16, 32 or 64 bits")
                with np.errstate(over="ignore"):
                    tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    except zipfile.BadZipFile as error:
        raise SAEFileError(path, f"not a whole npz file: {error}") from error
    except (ValueError, EOFError, KeyError, zlib.error, RuntimeError, NotImplementedError) as error:
        if isinstance(error, SAEFileError):
            raise
        raise SAEFileError(path, f"cannot be read: {error}") from error
    return tensors


def refuse_growth(path: Path) -> None:
    """Raise SAEFileError for a zip archive that says it holds far more than its size, and zipfile.BadZipFile
    for what is none."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _MOST_GROWTH * path.stat().st_size:
        raise SAEFileError(path, f"it would grow to {size} bytes, which no archive of weights does")


def only_these(
    path: Path, tensors: Mapping[str, Tensor], required: Collection[str], layout: str
) -> dict[str, Tensor]:
    """The tensors, which are exactly those that `layout` has. Raises SAEFileError for any other set."""
    if missing := sorted(set(required) - tensors.keys()):
        raise SAEFileError(path, f"{layout} layout needs {', '.join(missing)}, not in the file")
    if superfluous := sorted(tensors.keys() - set(required)):
        named = ", ".join(repr(name) for name in superfluous[:8])
        raise SAEFileError(path, f"tensors that {layout} layout does not have: {named}")
    return dict(tensors)


def turned(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A matrix that a file holds the other way round, contiguous. Raises SAEFileError for another shape."""
    tensor = tensors[name]
    if tensor.ndim != 2:
        raise SAEFileError(path, f"{name} has the shape {list(tensor.shape)}, not 2 dimensions")
    return tensor.T.contiguous()


def fold_scale(tensors: dict[str, Tensor], into: float, out: float) -> None:
    """Fold into the weights that activations are multiplied by `into` before they are encoded, and divided by
    `out` after they are decoded: W_enc·into, W_dec/out, b_dec/out. The encoder's biases and the thresholds,
    which are on the side of the features, stay."""
    tensors["W_enc"] = tensors["W_enc"] * into
    tensors["W_dec"] = tensors["W_dec"] / out
    tensors["b_dec"] = tensors["b_dec"] / out


def fold_decoder_norms(tensors: dict[str, Tensor]) -> None:
    """Make the unit of each feature the norm of its decoder row: W_enc and b_enc times it, W_dec by it. What
    decides by p·‖W_dec‖ then decides by p."""
    norms = tensors["W_dec"].norm(dim=1)
    tensors["W_enc"] = tensors["W_enc"] * norms
    tensors["b_enc"] = tensors["b_enc"] * norms
    tensors["W_dec"] = tensors["W_dec"] / torch.where(norms > 0.0, norms, 1.0)[:, None]


def fold_centring(tensors: dict[str, Tensor], apply_b_dec_to_input: bool) -> None:
    """Let the weights read x as they have read x − mean(x): every column of W_enc then sums to zero over d.
    Folding once more changes nothing."""
    before = tensors["W_enc"]
    centred = before - before.mean(dim=0)
    shift = tensors["b_dec"] @ (centred - before) if apply_b_dec_to_input else torch.zeros(before.shape[1])
    tensors["W_enc"] = centred
    for name in ("b_enc", "b_gate"):
        if name in tensors:
            tensors[name] = tensors[name] + shift
    if "b_mag" in tensors:
        tensors["b_mag"] = tensors["b_mag"] + tensors["r_mag"].exp() * shift


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
