"""Bundles of policies as files: which files they may have, and how a directory is read and packed."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from saegis.policies import PolicyProblem

POLICY_FILE = "policy.yaml"
SIGNATURE_FILE = "signature.json"
CALIBRATION_FILE = "calibration.json"
README_FILE = "README.md"
RULES, TESTS, DIRECTIONS = "rules", "tests", "directions"

#: Most files of a bundle, the signature included, and most bytes of all of them.
MOST_FILES = 256
MOST_BYTES = 16 * 2**20

_SUFFIXES = {RULES: ".yaml", TESTS: ".yaml", DIRECTIONS: ".safetensors"}
_TOP = (POLICY_FILE, SIGNATURE_FILE, CALIBRATION_FILE, README_FILE)
#: Names are plain ASCII, so that a path has one spelling and one meaning on every system.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}\.[a-z]+")
LAYOUT = (
    "a bundle has policy.yaml, rules/*.yaml, tests/*.yaml, directions/*.safetensors, calibration.json, "
    "README.md and signature.json"
)


def belongs(path: str) -> bool:
    """Whether a bundle may have a file at `path`."""
    folder, slash, name = path.rpartition("/")
    if not slash:
        return path in _TOP
    suffix = _SUFFIXES.get(folder)
    return suffix is not None and name.endswith(suffix) and _NAME.fullmatch(name) is not None


class BundleFilesError(ValueError):
    """Files that are no valid bundle; `problems` holds everything that is wrong, at least one."""

    def __init__(self, problems: Sequence[PolicyProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def _error(message: str, file: str = "") -> BundleFilesError:
    return BundleFilesError([_problem(message, file)])


def _problem(message: str, file: str = "") -> PolicyProblem:
    return PolicyProblem(file=file, line=0, path="", message=message)


#: The problem of files without a policy.
MISSING = _problem("is missing; it must be at the top of the bundle", POLICY_FILE)


def stray(path: str) -> PolicyProblem:
    """The problem of a file that does not belong."""
    shown = path if path.isascii() and path.isprintable() else repr(path)
    return _problem(f"does not belong here: {LAYOUT}", shown)


def pack(path: Path) -> bytes:
    """The archive of a bundle: made from a directory, or the bytes of an archive file.

    Raises BundleFilesError as `read_folder` does, if there is no policy.yaml, and for too large an archive.
    """
    if path.is_dir():
        files = read_folder(path)
        if POLICY_FILE not in files:
            raise BundleFilesError([MISSING])
        return write_archive(files)
    try:
        with path.open("rb") as file:
            data = file.read(2 * MOST_BYTES + 1)
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", str(path)) from error
    if len(data) > 2 * MOST_BYTES:
        raise _error(f"is too large: a bundle may have {MOST_BYTES} bytes", str(path))
    return data


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle's directory by its path inside. Links are not followed.

    Raises BundleFilesError for files that are not plain, do not belong or cannot be read, and for too many.
    """
    files: dict[str, bytes] = {}
    problems: list[PolicyProblem] = []
    left = MOST_BYTES
    for path, inside in _listed(folder, problems):
        if len(files) == MOST_FILES:
            raise _error(f"more than {MOST_FILES} files")
        data = read_plain(path, inside, left)
        left -= len(data)
        files[inside] = data
    if problems:
        raise BundleFilesError(problems)
    return files


def _listed(folder: Path, problems: list[PolicyProblem]) -> list[tuple[Path, str]]:
    """The plain files that belong, with their paths inside; adds all others to `problems`."""
    listed = []
    pending = [(folder, "")]
    while pending:
        at, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except OSError as error:
            raise _error(f"cannot be read: {error.strerror}", prefix or str(at)) from error
        for entry in entries:
            inside = prefix + entry.name
            if not prefix and entry.name in _SUFFIXES and entry.is_dir(follow_symlinks=False):
                pending.append((Path(entry.path), f"{inside}/"))
            elif not belongs(inside):
                problems.append(stray(inside))
            elif not entry.is_file(follow_symlinks=False):
                problems.append(_problem("is no plain file; copy what it stands for here", inside))
            else:
                listed.append((Path(entry.path), inside))
    return listed


def read_plain(path: Path, inside: str, most: int) -> bytes:
    """The bytes of a plain file, which may have changed since it was listed. Raises BundleFilesError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _error("is no plain file", inside)
            data = file.read(most + 1)
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", inside) from error
    if len(data) > most:
        raise _error(f"with this file the bundle has more than {MOST_BYTES} bytes", inside)
    return data


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """A tar.gz of the files. The same files give the same bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = len(files[path])
            tar.addfile(entry, io.BytesIO(files[path]))
    return gzip.compress(packed.getvalue(), mtime=0)
