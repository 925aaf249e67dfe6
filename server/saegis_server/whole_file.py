"""Whole files: replaced at once, so that a crash leaves the old content or the new."""

import os
from pathlib import Path

#: The ending of what is written before it replaces a file.
_PARTIAL = ".partial"


def write_whole(file: Path, data: bytes) -> None:
    """Replace a file by `data`. After a crash it has the old content or the new. Raises OSError."""
    partial = file.with_name(f"{file.name}{_PARTIAL}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, file)
    sync_directory(file.parent)


def sync_directory(directory: Path) -> None:
    """Force the names of a folder to the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
