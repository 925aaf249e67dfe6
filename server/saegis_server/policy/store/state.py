"""What is known of a policy's revisions: which is in force, which are beside it, and which there were."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

#: Digits of a digest that name a revision in a file's name, and the least that a caller may give.
DIGITS_IN_NAMES = 12
FEWEST_DIGITS = 8
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision of a policy.

    digest: of its bundle, hex. signed_by: the id of the key, verified; empty where no keys are asked for.
    put_time: when it last came in force or beside it, in UTC. put_by: a principal, or "start".
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
        """The name of its archive among its policy's."""
        return f"{self.serial}-{self.digest[:DIGITS_IN_NAMES]}.tar.gz"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a policy stands: what of it is persisted beside the archives.

    active: digest of the revision in force. shadow: of the one evaluated beside it, or empty. highest: the
    largest serial ever taken, which no roll back lowers. changes: counts puts and roll backs. source: the
    path in the server's configuration that it came from, or empty. revisions: all that were taken, each once,
    by serial.
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
        """Another one after every change."""
        text = "\n".join((self.name, self.active, self.shadow, str(self.changes)))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def of_digest(self, digest: str) -> Revision | None:
        """The revision of a whole digest."""
        return next((each for each in self.revisions if each.digest == digest), None)

    def of_serial(self, serial: int) -> Revision | None:
        """The revision of a serial."""
        return next((each for each in self.revisions if each.serial == serial), None)

    def with_active(self, revision: Revision) -> Self:
        """With another revision in force. A candidate that is not newer than it is one no longer."""
        beside = self.of_digest(self.shadow)
        keeps = beside is not None and beside.serial > revision.serial
        return replace(self._with(revision), active=revision.digest, shadow=self.shadow if keeps else "")

    def with_shadow(self, revision: Revision) -> Self:
        """With another revision beside the one in force."""
        return replace(self._with(revision), shadow=revision.digest)

    def rolled_back(self, revision: Revision) -> Self:
        """With an earlier revision in force again, and none beside it."""
        return replace(self._with(revision), active=revision.digest, shadow="")

    def _with(self, revision: Revision) -> Self:
        others = [each for each in self.revisions if each.digest != revision.digest]
        return replace(
            self,
            highest=max(self.highest, revision.serial),
            changes=self.changes + 1,
            revisions=tuple(sorted((*others, revision), key=lambda each: each.serial)),
        )

    def to_json(self) -> bytes:
        """As it is persisted."""
        told = asdict(self)
        for revision in told["revisions"]:
            revision["put_time"] = revision["put_time"].isoformat()
        return json.dumps({"format": _FORMAT, **told}, indent=2, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `to_json` gave. Raises ValueError for anything else."""
        try:
            told: dict[str, Any] = json.loads(data)
            if told.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            told["revisions"] = tuple(_revision(each) for each in told["revisions"])
            found = cls(**told)
            texts = all(
                isinstance(each, str) for each in (found.name, found.active, found.shadow, found.source)
            )
            numbers = all(type(each) is int and each >= 0 for each in (found.highest, found.changes))
        except RecursionError:
            raise ValueError("its maps and lists lie too deep within each other") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks or misstates a key: {error}") from error
        if not (texts and numbers):
            raise ValueError("it misstates a key")
        for digest in (found.active, *([found.shadow] if found.shadow else [])):
            if found.of_digest(digest) is None:
                raise ValueError(f"it has no revision {digest!r}, which is to be in force")
        if found.highest < max(each.serial for each in found.revisions):
            raise ValueError("its highest serial is less than that of a revision")
        return found


def _revision(told: dict[str, Any]) -> Revision:
    put_time = datetime.fromisoformat(told["put_time"]).astimezone(UTC)
    made = Revision(**{**told, "put_time": put_time})
    if type(made.serial) is not int or not all(
        isinstance(each, str) for each in (made.name, made.revision, made.digest, made.signed_by, made.put_by)
    ):
        raise ValueError("it misstates a revision")
    return made


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as it is told: what is in force, what beside it, and what the author wrote of it.

    rules: the ids of its rules.
    """

    active: Revision
    shadow: Revision | None
    etag: str
    description: str
    rules: tuple[str, ...]
