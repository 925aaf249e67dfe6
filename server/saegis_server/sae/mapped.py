"""A mapped file: the matrices of a large SAE stay in their safetensors file, and only what is used is read.

The file is read once from end to end when it is loaded, past the process's own memory: for its digest, and to
see that all numbers are finite. Later every row that is taken is preceded by a look whether the file is still
the one that was read.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from saegis_server.sae.errors import SAEFileError

#: Matrices that have more bytes than this in float32 stay in their file.
MAPPED_FROM = 2**30
#: In a file these dtypes stay as they are; float64 would lose nothing but is no one's.
MAPPED_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
#: A part that is hashed by itself, and what of it is read at once: both multiples of every number's size.
_PART, _AT_ONCE = 1 << 26, 1 << 20
#: More threads would wait for each other's memory.
_THREADS = 8
#: For each number's size in bytes: the integers of its bits, unsigned and signed.
_BITS = {2: (np.uint16, np.int16), 4: (np.uint32, np.int32)}


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A safetensors file whose matrices are not copied.

    digest: SHA-256 of the SHA-256 of each part of the file and of each of those that were hashed with it; a
    part is the header, or up to 64 MiB of a tensor. largest: the largest magnitude in the
    matrices, all of whose numbers are finite. state: what tells whether the file is still the same.
    """

    path: Path
    digest: str
    largest: float
    state: tuple[int, ...]

    @classmethod
    def read(cls, path: Path, matrices: Collection[str], *others: Path) -> "MappedFile":
        """Read a whole safetensors file and hash it, and after it `others`.

        Raises SAEFileError for numbers of `matrices` that are not finite and for a file that changes
        meanwhile, and OSError.
        """
        state = _state(path)
        with path.open("rb") as file, ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            parts = list(_parts(path, matrices))
            read = list(threads.map(partial(_read_part, path, file.fileno()), parts))
        hashes = [part.hash for part in read] + [
            hashlib.sha256(other.read_bytes()).digest() for other in others
        ]
        digest = hashlib.sha256(b"".join(hashes)).hexdigest()
        found = cls(path, digest, max(part.largest for part in read), state)
        found.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Raise SAEFileError if the file is not what it was when it was read."""
        if _state(self.path) != self.state:
            raise SAEFileError(self.path, "has changed since it was loaded; start the server again")


class _Part(NamedTuple):
    """Bytes of a file, from `start` to `end`. dtype: of the numbers there, if they must be finite."""

    start: int
    end: int
    name: str = ""
    dtype: torch.dtype | None = None


class _ReadPart(NamedTuple):
    """The SHA-256 of a part, and the largest magnitude in it, 0 where it holds no numbers."""

    hash: bytes
    largest: float


def _parts(path: Path, matrices: Collection[str]) -> Iterator[_Part]:
    """The header of a safetensors file, then its tensors in the order of the file, a large one in pieces."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    begin = 8 + size
    yield _Part(0, begin)
    places = [
        (*entry["data_offsets"], name, MAPPED_DTYPES.get(entry["dtype"]) if name in matrices else None)
        for name, entry in entries.items()
        if name != "__metadata__"
    ]
    for start, end, name, dtype in sorted(places, key=lambda place: place[0]):
        for at in range(start, end, _PART):
            yield _Part(begin + at, begin + min(end, at + _PART), name, dtype)


def _read_part(path: Path, file: int, part: _Part) -> _ReadPart:
    """Hash a part of the file with this descriptor, and find the largest magnitude of its numbers.

    The bits of a float without its sign grow with its magnitude, and what is not finite is above the rest.
    """
    state, buffer, most = hashlib.sha256(), bytearray(_AT_ONCE), 0
    for at in range(part.start, part.end, _AT_ONCE):
        piece = memoryview(buffer)[: min(_AT_ONCE, part.end - at)]
        if os.preadv(file, [piece], at) != len(piece):
            raise SAEFileError(path, "ends before its header says")
        state.update(piece)
        if part.dtype is not None:
            unsigned, signed = _BITS[part.dtype.itemsize]
            sign = 1 << (8 * part.dtype.itemsize - 1)
            # With the sign the bits are largest for the largest of the negative numbers.
            with_sign = int(np.frombuffer(piece, unsigned).max())
            most = max(most, int(np.frombuffer(piece, signed).max()), with_sign - sign)
    if part.dtype is None:
        return _ReadPart(state.digest(), 0.0)
    integer = torch.int16 if part.dtype.itemsize == 2 else torch.int32
    if most >= int(torch.tensor(torch.inf, dtype=part.dtype).view(integer)):
        raise SAEFileError(path, f"{part.name} holds numbers that are not finite")
    return _ReadPart(state.digest(), float(torch.tensor(most, dtype=integer).view(part.dtype)))


def _state(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
