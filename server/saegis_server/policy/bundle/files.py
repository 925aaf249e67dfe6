"""The files of a bundle: which there may be, how many and how large, and how a directory of them is read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from saegis_server.policy.errors import BundleError, Problem

POLICY_FILE = "policy.yaml"
SIGNATURE_FILE = "signature.json"
CALIBRATION_FILE = "calibration.json"
README_FILE = "README.md"
RULES, TESTS, DIRECTIONS = "rules", "tests", "directions"

#: Most files of a bundle, the signature included, and most bytes of all of them.
MOST_FILES = 256
MOST_BYTES = 16 * 2**20
#: Most bytes of all YAML files, which are slow to read.
MOST_YAML_BYTES = 512 * 1024

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


def in_folder(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    """The files of one folder, by path, in order."""
    return {path: files[path] for path in sorted(files) if path.startswith(f"{folder}/")}


def check_files(files: Mapping[str, bytes]) -> None:
    """Raise BundleError for a missing policy.yaml, files that do not belong, too many or too large ones."""
    problems = [stray(path) for path in sorted(files) if not belongs(path)]
    if POLICY_FILE not in files:
        problems.append(Problem("is missing; it must be at the top of the bundle", file=POLICY_FILE))
    if len(files) > MOST_FILES:
        problems.append(Problem(f"{len(files)} files; a bundle may have {MOST_FILES}"))
    total = sum(map(len, files.values()))
    if total > MOST_BYTES:
        problems.append(Problem(f"{total} bytes; a bundle may have {MOST_BYTES}"))
    texts = sum(len(data) for path, data in files.items() if path.endswith(".yaml"))
    if texts > MOST_YAML_BYTES:
        problems.append(Problem(f"{texts} bytes of YAML; a bundle may have {MOST_YAML_BYTES}"))
    if problems:
        raise BundleError(problems)


def stray(path: str) -> Problem:
    """The problem of a file that does not belong."""
    shown = path if path.isascii() and path.isprintable() else repr(path)
    return Problem(f"does not belong here: {LAYOUT}", file=shown)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle's directory by its path inside. Links are not followed.

    Raises BundleError for what is no plain file, does not belong, is too much or cannot be read.
    """
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    left = MOST_BYTES
    for path, inside in _listed(folder, problems):
        if len(files) == MOST_FILES:
            raise BundleError([Problem(f"more than {MOST_FILES} files")])
        data = read_plain(path, inside, left)
        left -= len(data)
        files[inside] = data
    if problems:
        raise BundleError(problems)
    return files


def _listed(folder: Path, problems: list[Problem]) -> list[tuple[Path, str]]:
    """The plain files that belong; what does not is added to `problems`."""
    found = []
    pending = [(folder, "")]
    while pending:
        at, prefix = pending.pop()
        try:
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except OSError as error:
            raise BundleError(
                [Problem(f"cannot be read: {error.strerror}", file=prefix or str(at))]
            ) from error
        for entry in entries:
            inside = prefix + entry.name
            if not prefix and entry.name in _SUFFIXES and entry.is_dir(follow_symlinks=False):
                pending.append((Path(entry.path), f"{inside}/"))
            elif not belongs(inside):
                problems.append(stray(inside))
            elif not entry.is_file(follow_symlinks=False):
                problems.append(Problem("is no plain file; copy what it stands for here", file=inside))
            else:
                found.append((Path(entry.path), inside))
    return found


def read_plain(path: Path, inside: str, most: int) -> bytes:
    """The bytes of a plain file, which may have been replaced since it was listed. Raises BundleError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleError([Problem("is no plain file", file=inside)])
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError([Problem(f"cannot be read: {error.strerror}", file=inside)]) from error
    if len(data) > most:
        raise BundleError(
            [Problem(f"with this file the bundle has more than {MOST_BYTES} bytes", file=inside)]
        )
    return data
