"""A mapped file: the matrices of a large SAE stay in their safetensors file, and only what is used is read.

The file is read once from end to end when it is loaded, past the process's own memory: for its digest, and to
see that all numbers are finite. Later every row that is taken is preceded by a look whether the file is still
the one that was read.
"""

import hashlib
import json
import math
import os
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch

from saegis_server.sae.errors import SAEFileError

#: Matrices that have more bytes than this in float32 stay in their file.
MAPPED_FROM = 2**30
#: In a file these dtypes stay as they are; float64 would lose nothing but is no one's.
MAPPED_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
#: Read at once; a multiple of every number's size.
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A safetensors file whose matrices are not copied.

    digest: SHA-256 of the file and of those that were hashed with it. largest: the largest magnitude in the
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
        with path.open("rb") as file, ThreadPoolExecutor(1) as hashing:
            hashed = _Hash(hashing)
            largest = _largest(path, file, matrices, hashed)
            for other in others:
                hashed.take(other.read_bytes())
            digest = hashed.digest()
        found = cls(path, digest, largest, state)
        found.require_unchanged()
        return found

    def require_unchanged(self) -> None:
        """Raise SAEFileError if the file is not what it was when it was read."""
        if _state(self.path) != self.state:
            raise SAEFileError(self.path, "has changed since it was loaded; start the server again")


class _Hash:
    """SHA-256 of parts, each hashed while the next is read."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._state, self._thread = hashlib.sha256(), thread
        self._running: Future[None] | None = None

    def take(self, part: bytes | bytearray) -> None:
        self._settle()
        self._running = self._thread.submit(self._state.update, part)

    def digest(self) -> str:
        self._settle()
        return self._state.hexdigest()

    def _settle(self) -> None:
        if self._running is not None:
            self._running.result()


def _largest(path: Path, file: BufferedReader, matrices: Collection[str], hashed: _Hash) -> float:
    """The largest magnitude in the matrices; every byte of the file goes into `hashed`."""
    begin = file.read(8)
    header = file.read(int.from_bytes(begin, "little"))
    hashed.take(begin + header)
    places = [
        (entry["data_offsets"], name, MAPPED_DTYPES.get(entry["dtype"]))
        for name, entry in json.loads(header).items()
        if name != "__metadata__"
    ]
    largest = 0.0
    for (start, end), name, dtype in sorted(places, key=lambda place: place[0]):
        for at in range(start, end, _CHUNK):
            part = bytearray(min(_CHUNK, end - at))
            if file.readinto(part) != len(part):
                raise SAEFileError(path, "ends before its header says")
            hashed.take(part)
            if name not in matrices or dtype is None:
                continue
            numbers = torch.frombuffer(part, dtype=dtype)
            most = max(abs(float(number)) for number in torch.aminmax(numbers))  # NaN is the largest
            if not math.isfinite(most):
                raise SAEFileError(path, f"{name} holds numbers that are not finite")
            largest = max(largest, most)
    return largest


def _state(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
