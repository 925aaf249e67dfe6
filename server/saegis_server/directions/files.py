"""Files of directions: safetensors and npz, read whole from bytes and checked, without ever unpickling."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from saegis_server.steering.site import Site, Widths

#: What a file may have beside its numbers: names, metadata and the like.
MOST_EXTRA_BYTES = 64 * 1024
#: The endings of files of directions.
ENDINGS = (".safetensors", ".npz")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ZIP = b"PK\x03\x04"
_PLAIN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class DirectionFileError(ValueError):
    """A file, or a vector in it, that is no direction."""


class FileDirection(NamedTuple):
    """The one direction of a file: its vector, float32 [d], and the site that the file states, or ""."""

    vector: Tensor
    site: str = ""


def read_direction(data: bytes, widest: int) -> FileDirection:
    """The direction of at most `widest` numbers in a safetensors file or an npz archive, which holds nothing
    else. Raises DirectionFileError.
    """
    most = 8 * widest + MOST_EXTRA_BYTES
    if len(data) > most:
        raise DirectionFileError(f"has {len(data)} bytes; a direction of {widest} numbers has at most {most}")
    site = ""
    if data.startswith(_ZIP):
        name, tensor = _only(_npz(data, most))
    else:
        name, tensor = _only(read_safetensors(data))
        site = _stated_site(data)
    try:
        return FileDirection(as_direction(tensor), site)
    except DirectionFileError as error:
        raise DirectionFileError(f"{name}: {error}") from error


def read_file(path: Path, widest: int) -> FileDirection:
    """The direction of at most `widest` numbers in a file of this name. Raises DirectionFileError, with the
    path, also if it cannot be read."""
    try:
        with path.open("rb") as file:
            return read_direction(file.read(8 * widest + MOST_EXTRA_BYTES + 1), widest)
    except OSError as error:
        raise DirectionFileError(f"{path}: cannot be read: {error.strerror}") from error
    except DirectionFileError as error:
        raise DirectionFileError(f"{path}: {error}") from error


def read_safetensors(data: bytes) -> Mapping[str, Tensor]:
    """All tensors of a safetensors file, by name. Raises DirectionFileError for what is none."""
    try:
        return load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DirectionFileError(f"is no whole safetensors file: {error}") from error


def as_direction(tensor: Tensor) -> Tensor:
    """A tensor as float32 [d]. Raises DirectionFileError unless it is one vector of floats, finite in float32
    and not zero."""
    if tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DirectionFileError(f"is of type {kind}; a direction holds floats of 16, 32 or 64 bits")
    vector = tensor.to(torch.float32)
    if vector.dim() != 1 or not len(vector):
        shape = list(vector.shape)
        raise DirectionFileError(f"has the shape {shape}; a direction has one axis, as wide as the model")
    if not bool(torch.isfinite(vector).all()):
        raise DirectionFileError("holds numbers that are not finite in float32")
    if not bool(vector.any()):
        raise DirectionFileError("is zero everywhere, and so points nowhere")
    return vector


def check_width(vector: Tensor, site: Site | None, widths: Widths) -> None:
    """Raise DirectionFileError unless a vector is as wide as the activations at its site, or without one as
    the residual stream."""
    width, at = (widths.stream, "") if site is None else (widths.at(site), f" at {site}")
    if len(vector) != width:
        raise DirectionFileError(
            f"must have {width} numbers, as the model's activations{at}, not {len(vector)}"
        )


def _only(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor]:
    if len(tensors) != 1:
        raise DirectionFileError(f"holds {len(tensors)} arrays; a file of a direction holds one")
    return next(iter(tensors.items()))


def _stated_site(data: bytes) -> str:
    """The site in the metadata of what is a whole safetensors file."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return str(header.get("__metadata__", {}).get("site", ""))


def _npz(data: bytes, most: int) -> dict[str, Tensor]:
    """The arrays of an npz archive that says that it holds at most so many bytes.

    numpy's own reader makes room for what a header claims before it reads, and so this one reads the headers.
    """
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise DirectionFileError(f"holds {len(members)} arrays; a file of a direction holds one")
            member = members[0]
            if member.compress_type not in _PLAIN or member.file_size > most:
                raise DirectionFileError(
                    f"{member.filename} is packed as numpy packs nothing, or has {member.file_size} bytes, "
                    f"of at most {most}"
                )
            return {member.filename.removesuffix(".npy"): _npy(archive.read(member))}
    except DirectionFileError:
        raise
    except zipfile.BadZipFile as error:
        raise DirectionFileError(f"is no whole npz file: {error}") from error
    except (ValueError, EOFError, KeyError, OSError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise DirectionFileError(f"cannot be read: {error}") from error


def _npy(data: bytes) -> Tensor:
    """An array of numpy's own format. Raises ValueError and DirectionFileError."""
    file = BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if (read := readers.get(npy.read_magic(file))) is None:
        raise DirectionFileError("is of a version of numpy's format that has no plain arrays")
    shape, _, kind = read(file)
    if kind.kind != "f" or kind.itemsize not in (2, 4, 8):
        raise DirectionFileError(f"is of type {kind}; a direction holds floats of 16, 32 or 64 bits")
    numbers = np.frombuffer(data, kind, offset=file.tell())
    if shape != (len(numbers),):
        raise DirectionFileError(f"says that its shape is {list(shape)}, and holds {len(numbers)} numbers")
    with np.errstate(over="ignore"):
        return torch.from_numpy(numbers.astype(np.float32))
