"""Search of an audit log: the newest decisions and answers that fit, from a bounded part of it at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from saegis_server.audit.chain import UnreadableLineError, read_line
from saegis_server.audit.files import ACTIVE, closed_files
from saegis_server.audit.records import PlainJson, RecordKind

#: How many bytes of a log one search looks at, and how many of them it tells, up to one record more.
MOST_READ, MOST_TOLD = 16 * 2**20, 2**20
#: Clocks are set back: how much older a record may be than what is looked for, until nothing newer comes.
SLACK = timedelta(hours=1)
_BLOCK = 64 * 1024
_PLACE = re.compile(r"(\d{1,18})-(\d{1,18})\Z", re.ASCII)
_KINDS = (RecordKind.DECISION, RecordKind.ANSWER)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a log: the number of the first record of a file, and a byte of that file."""

    first: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The place that `str` wrote. Raises ValueError."""
        if (match := _PLACE.match(text)) is None:
            raise ValueError(f"{text!r} is no place in a log")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.first}-{self.offset}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records are looked for; what is not set excludes nothing.

    rule: an id, alone or as "policy/rule". begin, end: from the one up to but not including the other.
    denied: denials alone.
    """

    tenant: str = ""
    rule: str = ""
    decision_id: str = ""
    begin: datetime | None = None
    end: datetime | None = None
    denied: bool = False

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is wanted."""
        time = _time(record)
        return (
            record["kind"] in _KINDS
            and self.tenant in ("", record.get("tenant"))
            and self.decision_id in ("", record.get("decision_id"))
            and not (self.denied and record.get("allowed", True))
            and (self.begin is None or time >= self.begin)
            and (self.end is None or time < self.end)
            and (not self.rule or any(map(self._names, _rules(record))))
        )

    def is_over(self, record: Mapping[str, Any]) -> bool:
        """Whether a record is so old that no older one is wanted."""
        return self.begin is not None and self.begin - _time(record) > SLACK

    def _names(self, rule: Mapping[str, Any]) -> bool:
        return self.rule in (rule.get("rule"), f"{rule.get('policy')}/{rule.get('rule')}")


def _time(record: Mapping[str, Any]) -> datetime:
    """When a record was written; the latest time for what is none, so that nothing ends there."""
    try:
        return datetime.fromisoformat(record["time"]).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.max.replace(tzinfo=UTC)


def _rules(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The rules that denied a request or would have, or that did anything for it.

    A decision's `rules` were in force for it, whether or not they did anything. What is masked is not found.
    """
    for name in ("denials", "would_deny") if record["kind"] == RecordKind.DECISION else ("rules",):
        listed = record.get(name)
        yield from (rule for rule in listed if isinstance(rule, dict)) if isinstance(listed, list) else ()


@dataclass(frozen=True, slots=True)
class Found:
    """Records, newest first, and where older ones begin; None where there are none."""

    records: tuple[Mapping[str, PlainJson], ...]
    rest: Place | None


def find(directory: Path, wanted: Wanted, most: int, before: Place | None = None) -> Found:
    """At most so many records before a place, or the newest ones. Nothing is verified. Raises OSError."""
    found: list[Mapping[str, PlainJson]] = []
    read = told = 0
    for first, path in _newest_first(directory):
        if before is not None and first > before.first:
            continue
        end = before.offset if before is not None and first == before.first else None
        for offset, line in _backwards(path, end):
            read += len(line)
            try:
                record = read_line(line, None).record
            except UnreadableLineError:
                continue
            if wanted.is_over(record):
                return Found(tuple(found), None)
            if wanted.fits(record):
                found.append(record)
                told += len(line)
            if len(found) == most or read >= MOST_READ or told >= MOST_TOLD:
                return Found(tuple(found), Place(first, offset))
    return Found(tuple(found), None)


def _newest_first(directory: Path) -> list[tuple[int, Path]]:
    """The files of a log with each one's first record's number. The active one may be closed meanwhile."""
    files = dict(_active(directory / ACTIVE))
    files |= {file.first: file.path for file in closed_files(directory)}
    return sorted(files.items(), reverse=True)


def _active(path: Path) -> Iterator[tuple[int, Path]]:
    """The active file with the number of its first record, if it has one."""
    try:
        with path.open("rb") as file:
            yield read_line(file.readline(), None).link.seq, path
    except (FileNotFoundError, UnreadableLineError):
        return


def _backwards(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a file before a byte, or all, the last one first, with where each begins.

    None of a file that is gone: closed ones are deleted, as the setting `keep` says.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        size = file.seek(0, 2)
        at, rest = size if end is None else min(end, size), b""
        while at:
            start = max(0, at - _BLOCK)
            file.seek(start)
            rest, at = file.read(at - start) + rest, start
            head, *lines = rest.splitlines(keepends=True) if at else [b"", *rest.splitlines(keepends=True)]
            offset = at + len(rest)
            for line in reversed(lines):
                offset -= len(line)
                if line.endswith(b"\n"):
                    yield offset, line
            rest = head
