"""The files of a bundle, read from a folder or an archive. Neither is trusted.

An archive is a tar, compressed or not. The reader knows only the part of POSIX and GNU tar that a bundle
needs: plain files and directories. What other readers might read differently (links, sparse files, names in
extension headers, a file twice, bytes after the end) is refused, so that what is read is what was signed.
Python's own reader is not used: it takes a damaged header for the end of the archive, goes backwards for a
negative size, and 60 kB in an extension header hang that of Python 3.11.7 forever (CVE-2024-6232).
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from saegis import bundles
from saegis.bundles import MOST_BYTES, MOST_FILES, POLICY_FILE, belongs
from saegis.policies import PolicyProblem
from saegis_server.policy.errors import BundleError
from saegis_server.problem import Problem

#: Most bytes of all YAML files, which are slow to read.
MOST_YAML_BYTES = 512 * 1024
_BLOCK = 512
#: Most bytes of a tar: all files, the headers and padding of each, and the padding at the end.
MOST_TAR_BYTES = MOST_BYTES + MOST_FILES * 8 * _BLOCK + 64 * 1024
_GZIP = b"\x1f\x8b"
_FILES, _DIRECTORY, _EXTENSIONS = (b"0", b"\0"), b"5", (b"x", b"g")
#: Extension headers that change neither the name of a file nor its content.
_HARMLESS = re.compile(
    r"[acm]time|comment|[ug]id|[ug]name|LIBARCHIVE\..+|SCHILY\.(xattr\..+|fflags|dev|ino|nlink)"
)
_NUMBER = re.compile(rb"[ 0]*([0-7]{1,11})[ \0]*")
_RECORD = re.compile(rb"([1-9][0-9]{0,8}) ")


def in_folder(files: Mapping[str, bytes], folder: str) -> dict[str, bytes]:
    """The files of one folder, sorted by path."""
    return {path: files[path] for path in sorted(files) if path.startswith(f"{folder}/")}


def check_files(files: Mapping[str, bytes]) -> None:
    """Raise BundleError for a missing policy.yaml, files that do not belong, too many or too large ones."""
    problems = [stray(path) for path in sorted(files) if not belongs(path)]
    if POLICY_FILE not in files:
        problems.append(_problem(bundles.MISSING))
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
    return _problem(bundles.stray(path))


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a bundle's directory by its path inside. Links are not followed.

    Raises BundleError for anything that is no plain file, does not belong, is too large or cannot be read.
    """
    try:
        return bundles.read_folder(folder)
    except bundles.BundleFilesError as error:
        raise BundleError([_problem(problem) for problem in error.problems]) from error


def _problem(problem: PolicyProblem) -> Problem:
    return Problem(problem.message, problem.path, problem.file, problem.line)


def read_archive(data: bytes) -> dict[str, bytes]:
    """Every file of a tar or tar.gz by its path inside.

    Raises BundleError unless all are whole plain files that belong to a bundle, each of them once.
    """
    tar = _unpacked(data) if data[:2] == _GZIP else data
    if len(tar) > MOST_TAR_BYTES:
        raise _error(f"unpacks to more than {MOST_TAR_BYTES} bytes")
    files: dict[str, bytes] = {}
    for path, content in _members(tar):
        if not belongs(path):
            raise BundleError([stray(path), Problem("pack it with: tar -C FOLDER -czf FILE .")])
        if path in files:
            raise BundleError([Problem("is in the archive twice", file=path)])
        if len(files) == MOST_FILES:
            raise _error(f"has more than {MOST_FILES} files")
        files[path] = content
    return files


def _error(message: str) -> BundleError:
    return BundleError([Problem(f"the archive {message}")])


def _unpacked(data: bytes) -> bytes:
    """The unpacked bytes, at most one more than a tar may have, however many there would be."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(MOST_TAR_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _error(f"is no whole gzip file: {error}") from error


def _members(tar: bytes) -> Iterator[tuple[str, bytes]]:
    """The files of a tar, by path."""
    offset = 0
    while True:
        header = tar[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise _error("is no tar, or ends before its end is marked")
        offset += _BLOCK
        if not any(header):
            if any(tar[offset:]):
                raise _error("has bytes behind its end")
            return
        path, kind, size = _entry(header)
        content = tar[offset : offset + size]
        if len(content) < size:
            raise BundleError([Problem("the archive ends within it", file=path)])
        offset += -(-size // _BLOCK) * _BLOCK
        if kind in _EXTENSIONS:
            _check_extension(content)
        elif kind in _FILES:
            yield path, content


def _entry(header: bytes) -> tuple[str, bytes, int]:
    """Path, kind and size of a member, from its header. Raises BundleError."""
    if header[257:262] != b"ustar":
        raise _error("is no tar of POSIX or GNU")
    stated = _number(header[148:156], "checksum")
    if stated != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        raise _error("is damaged: a header does not fit its checksum")
    # GNU's header has no version, and has times where POSIX has the first part of the path.
    prefix = _text(header[345:500]) if header[262:265] == b"\x0000" else ""
    name = _text(header[:100])
    path = f"{prefix}/{name}" if prefix else name
    while path.startswith("./"):
        path = path[2:]
    kind, size = header[156:157], _number(header[124:136], f"size of {path!r}")
    if kind not in (*_FILES, _DIRECTORY, *_EXTENSIONS):
        raise BundleError([Problem("is no plain file; links and devices are not read", file=repr(path))])
    if kind == _DIRECTORY:
        _check_directory(path, size)
    return path, kind, size


def _check_directory(path: str, size: int) -> None:
    name = path.rstrip("/")
    if size or not (name in ("", ".") or any(belongs(f"{name}/x.{end}") for end in ("yaml", "safetensors"))):
        raise BundleError([stray(path), Problem("pack it with: tar -C FOLDER -czf FILE .")])


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode("ascii")
    except UnicodeDecodeError as error:
        raise _error(f"has a file whose name is not ASCII: {field!r}") from error


def _number(field: bytes, name: str) -> int:
    match = _NUMBER.fullmatch(field)
    if match is None:
        raise _error(f"is damaged: {name} is no number")
    return int(match[1], 8)


def _check_extension(content: bytes) -> None:
    """Raise BundleError for an extension header that holds more than times, owners and the like."""
    while content:
        start = _RECORD.match(content)
        length = int(start[1]) if start is not None else 0
        record = content[:length]
        key, equals, _ = record[start.end() if start is not None else 0 :].partition(b"=")
        if len(record) < length or not equals or record[-1:] != b"\n":
            raise _error("is damaged: an extension header cannot be read")
        if _HARMLESS.fullmatch(key.decode("ascii", "replace")) is None:
            raise _error(f"has the extension header {key[:40]!r}; pack it with: tar --format=ustar")
        content = content[length:]
