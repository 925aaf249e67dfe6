"""The history of policies: the archive of each revision and the state of each policy, on disk or in memory.

On disk a policy has a folder of its name, with an archive for each revision and its state in state.json. An
archive is whole on disk before that file names it, and the file changes by one rename. So after a crash at
any point the folder holds either the old state or the new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from saegis_server.policy.errors import HistoryError
from saegis_server.whole_file import sync_directory, write_whole

#: How many digits of a digest a file's name has, and how few a caller may give.
DIGITS_IN_NAMES = 12
FEWEST_DIGITS = 8
_FORMAT = 1
_LOCK = ".lock"
_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a policy.

    digest: of its bundle, hex. signed_by: the id of the key, verified; empty if none is required. put_time:
    when it last came in force, or became the candidate, in UTC. put_by: a principal, or "start".
    """

    name: str
    serial: int
    revision: str
    digest: str
    signed_by: str
    put_time: datetime
    put_by: str

    @property
    def file_name(self) -> str:
        """The file name of its archive in the folder of its policy."""
        return f"{self.serial}-{self.digest[:DIGITS_IN_NAMES]}.tar.gz"


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a policy that is persisted beside the archives.

    active: digest of the revision in force. shadow: digest of the candidate beside it, or empty. highest: the
    largest serial ever taken; a roll back does not lower it. changes: how many puts and roll backs there
    were. source: the path in the server's configuration that it came from, or empty. revisions: all that were
    taken, each once, by serial.
    """

    name: str
    active: str
    shadow: str = ""
    highest: int = 0
    changes: int = 0
    source: str = ""
    revisions: tuple[Revision, ...] = ()

    @property
    def etag(self) -> str:
        """A text that differs after every change."""
        text = "\n".join((self.name, self.active, self.shadow, str(self.changes)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def of_digest(self, digest: str) -> Revision | None:
        """The revision with this digest, all digits given."""
        return next((revision for revision in self.revisions if revision.digest == digest), None)

    def of_serial(self, serial: int) -> Revision | None:
        """The revision with this serial."""
        return next((revision for revision in self.revisions if revision.serial == serial), None)

    def with_active(self, revision: Revision) -> Self:
        """With another revision in force. A candidate that is not newer is dropped."""
        beside = self.of_digest(self.shadow)
        keeps = beside is not None and beside.serial > revision.serial
        return replace(self._with(revision), active=revision.digest, shadow=self.shadow if keeps else "")

    def with_shadow(self, revision: Revision) -> Self:
        """With this revision as the candidate beside the one in force."""
        return replace(self._with(revision), shadow=revision.digest)

    def rolled_back(self, revision: Revision) -> Self:
        """With an earlier revision in force again, and no candidate."""
        return replace(self._with(revision), active=revision.digest, shadow="")

    def _with(self, revision: Revision) -> Self:
        others = [other for other in self.revisions if other.digest != revision.digest]
        return replace(
            self,
            highest=max(self.highest, revision.serial),
            changes=self.changes + 1,
            revisions=tuple(sorted((*others, revision), key=lambda entry: entry.serial)),
        )

    def to_json(self) -> bytes:
        """The content of state.json."""
        fields = asdict(self)
        for revision in fields["revisions"]:
            revision["put_time"] = revision["put_time"].isoformat()
        return json.dumps({"format": _FORMAT, **fields}, indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The state that `to_json` wrote. Raises ValueError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            fields["revisions"] = tuple(_revision(revision) for revision in fields["revisions"])
            standing = cls(**fields)
            texts = all(
                isinstance(text, str)
                for text in (standing.name, standing.active, standing.shadow, standing.source)
            )
            numbers = all(type(count) is int and count >= 0 for count in (standing.highest, standing.changes))
        except RecursionError:
            raise ValueError("its maps and lists lie too deep within each other") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks or misstates a key: {error}") from error
        if not (texts and numbers):
            raise ValueError("it misstates a key")
        for digest in (standing.active, *([standing.shadow] if standing.shadow else [])):
            if standing.of_digest(digest) is None:
                raise ValueError(f"it has no revision {digest!r}, which is to be in force")
        if standing.highest < max(revision.serial for revision in standing.revisions):
            raise ValueError("its highest serial is less than that of a revision")
        return standing


def _revision(fields: dict[str, Any]) -> Revision:
    put_time = datetime.fromisoformat(fields["put_time"]).astimezone(UTC)
    revision = Revision(**{**fields, "put_time": put_time})
    if type(revision.serial) is not int or not all(
        isinstance(text, str)
        for text in (revision.name, revision.revision, revision.digest, revision.signed_by, revision.put_by)
    ):
        raise ValueError("it misstates a revision")
    return revision


class History:
    """Keeps archives and states. This class keeps them in memory, until the process ends."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._archives: dict[tuple[str, str], bytes] = {}

    def standings(self) -> dict[str, Standing]:
        """The state of each policy, by name."""
        return dict(self._standings)

    def keep(self, revision: Revision, archive: bytes) -> None:
        """Keep a revision's archive; an archive of the same digest is written anew."""
        self._archives[revision.name, revision.digest] = archive

    def stand(self, standing: Standing) -> None:
        """Set the state of a policy, whose archives were kept before."""
        self._standings[standing.name] = standing

    def archive(self, revision: Revision) -> bytes:
        """A revision's archive."""
        return self._archives[revision.name, revision.digest]

    def close(self) -> None:
        """Release it for another server."""


class DiskHistory(History):
    """A history in a directory, which only one server holds at a time.

    Raises HistoryError if the directory cannot be used, another server holds it, or a file in it cannot be
    read or written.
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
        """The state of each policy, by name. Raises HistoryError for a file that holds none."""
        standings = {}
        try:
            files = sorted(self.directory.glob(f"*/{_STATE}"))
            for file in files:
                standing = self._standing(file)
                standings[standing.name] = standing
        except OSError as error:
            raise HistoryError(f"{self.directory}: cannot be read: {error}") from error
        return standings

    def _standing(self, file: Path) -> Standing:
        try:
            standing = Standing.from_json(file.read_bytes())
        except ValueError as error:
            raise HistoryError(
                f"{file}: does not say how a policy stands: {error}; restore it, or move its folder away"
            ) from error
        if {standing.name, *(revision.name for revision in standing.revisions)} != {file.parent.name}:
            raise HistoryError(
                f"{file}: is about the policy {standing.name!r}; restore it, or move its folder away"
            )
        return standing

    def keep(self, revision: Revision, archive: bytes) -> None:
        """Keep a revision's archive. It is on the disk when this returns."""
        folder = self.directory / revision.name
        try:
            if not folder.is_dir():
                folder.mkdir(mode=0o700)
                sync_directory(self.directory)
            write_whole(folder / revision.file_name, archive)
        except OSError as error:
            raise HistoryError(f"{folder / revision.file_name}: cannot be written: {error}") from error

    def stand(self, standing: Standing) -> None:
        """Set the state of a policy. Once this returns, it survives a crash."""
        file = self.directory / standing.name / _STATE
        try:
            write_whole(file, standing.to_json())
        except OSError as error:
            raise HistoryError(f"{file}: cannot be written: {error}") from error

    def archive(self, revision: Revision) -> bytes:
        """A revision's archive, as its file holds it."""
        file = self.directory / revision.name / revision.file_name
        try:
            return file.read_bytes()
        except OSError as error:
            raise HistoryError(f"{file}: cannot be read: {error}") from error

    def close(self) -> None:
        """Release the directory for another server."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
