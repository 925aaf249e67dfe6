"""Usage files: what is known of the use of an SAE's features, as safetensors that survive a restart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from saegis_server.engine.counts import Used
from saegis_server.whole_file import write_whole

_FORMAT = "saegis-usage/1"
#: The arrays of a file, of S stretches of M features, with their dtypes; last of all [2, M].
_ARRAYS = {"tokens": np.int64, "fired": np.uint32, "total": np.float32, "largest": np.float32}
_LAST = "last"
#: A stretch has fewer tokens than this, so that its counts fit.
MOST_TOKENS = 2**32


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """How M features were used from `start` to `end`, in seconds since the epoch; see `Used`.

    tokens: int64 [2]; fired: uint32 [2, M]; total, largest: float32 [2, M]. There may be many, so they are
    small.
    """

    start: float
    end: float
    tokens: NDArray[np.int64]
    fired: NDArray[np.uint32]
    total: NDArray[np.float32]
    largest: NDArray[np.float32]

    @classmethod
    def of(cls, start: float, end: float, used: Used) -> Stretch:
        """What was counted from `start` to `end`."""
        fired, total = used.fired.astype(np.uint32), used.total.astype(np.float32)
        return cls(start, end, used.tokens, fired, total, used.largest)

    def fits(self, later: Stretch) -> bool:
        """Whether both together are a stretch."""
        return int(self.tokens.sum() + later.tokens.sum()) < MOST_TOKENS

    def joined(self, later: Stretch) -> Stretch:
        """Both together."""
        return Stretch(
            self.start,
            later.end,
            self.tokens + later.tokens,
            self.fired + later.fired,
            self.total + later.total,
            np.maximum(self.largest, later.largest),
        )


class Known(NamedTuple):
    """All that is known of M features: stretches, oldest first, and when each was active last, float64
    [2, M], in seconds since the epoch, 0 for never."""

    stretches: tuple[Stretch, ...]
    last: NDArray[np.float64]


class UsageFileError(ValueError):
    """A file that does not hold what is known of this SAE; `path` is the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def usage_file(folder: Path, sae: str, digest: str) -> Path:
    """The file of an SAE: one with other weights has another one, whatever its id."""
    return folder / f"{quote(sae, safe='')[:128]}-{digest[:16]}.safetensors"


def write_usage(path: Path, sae: str, digest: str, known: Known) -> None:
    """Write at least one stretch. After a crash the file has the old content or the new. Raises OSError."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.stack([getattr(each, name) for each in known.stretches]) for name in _ARRAYS
    }
    times = [[each.start, each.end] for each in known.stretches]
    metadata = {"format": _FORMAT, "sae": sae, "digest": digest, "times": json.dumps(times)}
    write_whole(path, save({**arrays, _LAST: known.last}, metadata))


def read_usage(path: Path, sae: str, digest: str, features: int) -> Known:
    """What a file holds of an SAE with so many features.

    Raises FileNotFoundError, OSError, and UsageFileError for a file that is damaged or of another SAE.
    """
    path.stat()
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise UsageFileError(path, f"is no file of the format {_FORMAT}")
            if metadata.get("digest") != digest:
                other = f"{metadata.get('sae')} with the digest {metadata.get('digest', '')[:16]}"
                raise UsageFileError(path, f"is of {other}, not of {sae} with {digest[:16]}")
            arrays = {name: file.get_tensor(name) for name in (*_ARRAYS, _LAST)}
        times = np.array(json.loads(metadata["times"]), dtype=np.float64)
    except UsageFileError:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UsageFileError(path, f"cannot be read: {error}") from error
    _check(path, times, arrays, features)
    return Known(
        tuple(
            Stretch(float(start), float(end), *(arrays[name][place] for name in _ARRAYS))
            for place, (start, end) in enumerate(times)
        ),
        arrays[_LAST],
    )


def _check(path: Path, times: NDArray[np.float64], arrays: dict[str, NDArray[Any]], features: int) -> None:
    """Raise UsageFileError for arrays that do not fit together, or that nothing can have counted."""
    count = len(times)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_ARRAYS, (count, 2, features))
    shapes |= {"tokens": (count, 2), _LAST: (2, features)}
    for name, kind in {**_ARRAYS, _LAST: np.float64}.items():
        if arrays[name].shape != shapes[name] or arrays[name].dtype != kind:
            found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
            raise UsageFileError(path, f"{name} is {found}, not {np.dtype(kind)} {list(shapes[name])}")
        if not (np.isfinite(arrays[name]).all() and (arrays[name] >= 0).all()):
            raise UsageFileError(path, f"{name} holds numbers that are negative or not finite")
    if times.shape != (count, 2) or not np.isfinite(times).all() or (np.diff(times.reshape(-1)) < 0.0).any():
        raise UsageFileError(path, "its stretches of time are not in order")
    if (arrays["fired"] > arrays["tokens"][:, :, None]).any() or (arrays["tokens"] >= MOST_TOKENS).any():
        raise UsageFileError(path, "features fired at more tokens than there can have been")
