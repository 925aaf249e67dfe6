"""The history of policies: each revision's archive and how each policy stands, on disk or in memory.

On disk a policy has a folder of its name with an archive for each revision, and the file state.json that says
how it stands. An archive is whole on disk before the file names it, and the file changes by one rename. So
after a crash at any point the folder holds either the old state or the new one.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from saegis_server.policy.store.errors import HistoryError
from saegis_server.policy.store.state import Revision, Standing

_LOCK = ".lock"
_STATE = "state.json"
_PARTIAL = ".partial"


class History(Protocol):
    """Keeps archives and standings."""

    def standings(self) -> dict[str, Standing]:
        """How each policy stands, by name. Raises HistoryError."""
        ...

    def keep(self, revision: Revision, archive: bytes) -> None:
        """Keep a revision's archive. Raises HistoryError."""
        ...

    def stand(self, standing: Standing) -> None:
        """Let a policy stand as said; its archives were kept before. Raises HistoryError."""
        ...

    def archive(self, revision: Revision) -> bytes:
        """A revision's archive. Raises HistoryError."""
        ...

    def close(self) -> None:
        """Let another server have it."""
        ...


class MemoryHistory:
    """A history that ends with the process."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._archives: dict[tuple[str, str], bytes] = {}

    def standings(self) -> dict[str, Standing]:
        """How each policy stands, by name."""
        return dict(self._standings)

    def keep(self, revision: Revision, archive: bytes) -> None:
        """Keep a revision's archive."""
        self._archives[revision.name, revision.digest] = archive

    def stand(self, standing: Standing) -> None:
        """Let a policy stand as said."""
        self._standings[standing.name] = standing

    def archive(self, revision: Revision) -> bytes:
        """A revision's archive."""
        return self._archives[revision.name, revision.digest]

    def close(self) -> None:
        """Nothing is held."""


class DiskHistory:
    """A history in a directory, which one server has at a time.

    Raises HistoryError where the directory cannot be used, or another server has it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HistoryError(f"{directory}: cannot be used for the state of policies: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise HistoryError(
                f"{directory}: another server keeps its policies here; give each a directory of its own"
            ) from error

    def standings(self) -> dict[str, Standing]:
        """How each policy stands, by name. Raises HistoryError for a file that says no such thing."""
        found = {}
        try:
            files = sorted(self.directory.glob(f"*/{_STATE}"))
            for file in files:
                standing = self._standing(file)
                found[standing.name] = standing
        except OSError as error:
            raise HistoryError(f"{self.directory}: cannot be read: {error}") from error
        return found

    def _standing(self, file: Path) -> Standing:
        try:
            standing = Standing.from_json(file.read_bytes())
        except ValueError as error:
            raise HistoryError(
                f"{file}: does not say how a policy stands: {error}; restore it, or move its folder away"
            ) from error
        if {standing.name, *(each.name for each in standing.revisions)} != {file.parent.name}:
            raise HistoryError(
                f"{file}: is about the policy {standing.name!r}; restore it, or move its folder away"
            )
        return standing

    def keep(self, revision: Revision, archive: bytes) -> None:
        """Keep a revision's archive; one of the same digest that is there already is written anew."""
        folder = self.directory / revision.name
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                _sync_directory(self.directory)
            _write_whole(folder / revision.file_name, archive)
        except OSError as error:
            raise HistoryError(f"{folder / revision.file_name}: cannot be written: {error}") from error

    def stand(self, standing: Standing) -> None:
        """Let a policy stand as said."""
        file = self.directory / standing.name / _STATE
        try:
            _write_whole(file, standing.to_json())
        except OSError as error:
            raise HistoryError(f"{file}: cannot be written: {error}") from error

    def archive(self, revision: Revision) -> bytes:
        """A revision's archive, as it is in its file."""
        file = self.directory / revision.name / revision.file_name
        try:
            return file.read_bytes()
        except OSError as error:
            raise HistoryError(f"{file}: cannot be read: {error}") from error

    def close(self) -> None:
        """Let another server have the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _write_whole(file: Path, data: bytes) -> None:
    """Put `data` in a file's place: after a crash it has the old content or the new. Raises OSError."""
    partial = file.with_name(f"{file.name}{_PARTIAL}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, file)
    _sync_directory(file.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
