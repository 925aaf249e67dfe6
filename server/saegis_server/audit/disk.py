"""The operations of the audit log on the disk, one method each, so that tests can end a process at any."""

from __future__ import annotations

import os
from pathlib import Path

#: Files of the log are their owner's alone.
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class Disk:
    """Files by descriptor. Every method raises OSError as the system says."""

    def open(self, path: Path, create: bool) -> int:
        """Open for reading and for writing at the end; returns the descriptor."""
        return os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), FILE_MODE)

    def write(self, descriptor: int, data: bytes) -> int:
        """Write at the end; returns how many bytes were."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Force what was written to the disk."""
        os.fsync(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut to `size` bytes."""
        os.ftruncate(descriptor, size)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name."""
        path.rename(target)

    def remove(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def sync_directory(self, directory: Path) -> None:
        """Force the names of a directory to the disk."""
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
