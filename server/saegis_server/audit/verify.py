"""Verification of an audit log: what was changed, left out, moved, put in or cut off, by file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from saegis_server.audit import AuditError
from saegis_server.audit.chain import NO_HASH, Line, Link, UnreadableLineError, read_line
from saegis_server.audit.files import ACTIVE, ClosedFile, closed_files, log_files
from saegis_server.audit.records import DeletionRecord, PlainJson
from saegis_server.problem import Problem


@dataclass(frozen=True, slots=True)
class Verification:
    """The result. records: how many lines are records. first, last: the places of the first and last record.

    problems: none if the log is whole. notes: what a reader should know though it is no problem.
    """

    records: int
    first: Link | None
    last: Link | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> str:
        """The hash of the last record; empty if there is none."""
        return self.last.hash if self.last else ""


def verify(
    place: Path | Sequence[Path], key: bytes | None = None, expect_head: str | None = None
) -> Verification:
    """Verify the directory of a log, or files of a log in their order.

    expect_head: the hash of a record, noted elsewhere, that the log must still hold. Raises AuditError if
    there is nothing to verify, and OSError.
    """
    files = files_of(place)
    walk = _Walk(key, expect_head)
    for path in files:
        walk.read(path)
    if isinstance(place, Path) and place.is_dir():
        walk.check_beginning(files[0].name)
        walk.check_names(closed_files(place))
    elif walk.first is not None and walk.first.link.seq > 1:
        walk.notes.append(f"what came before record {walk.first.link.seq} was not looked at")
    walk.check_head(files[-1].name)
    first = walk.first.link if walk.first else None
    return Verification(walk.records, first, walk.last, tuple(walk.problems), tuple(walk.notes))


def files_of(place: Path | Sequence[Path]) -> list[Path]:
    """The files of a log's directory, oldest first, or those given. Raises AuditError for none."""
    if not isinstance(place, Path):
        files = list(place)
    elif place.is_dir():
        files = log_files(place)
    else:
        files = [place]
    if not files:
        raise AuditError(f"{place}: holds no audit log: neither {ACTIVE} nor closed files")
    return files


def lines(path: Path, key: bytes | None = None) -> Iterator[Line | UnreadableLineError]:
    """For each line of a file: its record, genuine or not, or the reason why it is none. Raises OSError."""
    with path.open("rb") as file:
        for text in file:
            try:
                yield read_line(text, key)
            except UnreadableLineError as error:
                yield error


def records(files: Iterable[Path]) -> Iterator[Line]:
    """All readable records of files, whether genuine or not.

    Raises OSError, and AuditError for a file that has lines but no record.
    """
    for path in files:
        has_record = False
        for line in lines(path):
            if isinstance(line, Line):
                has_record = True
                yield line
        if not has_record and path.stat().st_size:
            raise AuditError(f"{path}: no line of it is an audit record")


class _Walk:
    """A walk over the lines of a log: the findings so far, and the place that the next record must follow."""

    def __init__(self, key: bytes | None, expected: str | None) -> None:
        self.records = 0
        self.first: Line | None = None
        self.last: Link | None = None
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._key = key
        self._expected = expected
        self._expected_at: int | None = None
        # The hash is empty if the record at this place could not be read.
        self._before: Link | None = None
        self._deletions: dict[tuple[PlainJson, PlainJson], int] = {}
        self._ends: dict[str, tuple[int, int]] = {}

    def read(self, path: Path) -> None:
        """Read the next file."""
        for number, line in enumerate(lines(path, self._key), 1):
            if isinstance(line, Line):
                self._take(line, path.name, number)
                continue
            self._report(path.name, number, str(line))
            if self._before is not None:
                self._before = Link(self._before.seq + 1, "")

    def check_beginning(self, file: str) -> None:
        """Check that the log begins with record 1, or that a record says why earlier ones are gone."""
        if self.first is None:
            self.notes.append("there is no record")
            return
        seq = self.first.link.seq
        if seq == 1:
            return
        said_by = self._deletions.get((seq, self.first.prev))
        if said_by is None:
            self._report(
                file, 1, f"the log begins with record {seq}, and no record tells of a deletion before it"
            )
        else:
            self.notes.append(f"what came before record {seq} was deleted, as record {said_by} says")

    def check_names(self, closed: Sequence[ClosedFile]) -> None:
        """Check that closed files hold the records that their names say."""
        for file in closed:
            held = self._ends.get(file.path.name)
            if held != (file.first, file.last):
                content = f"records {held[0]} to {held[1]}" if held else "no record"
                self._report(file.path.name, 0, f"holds {content}, not {file.first} to {file.last}")

    def check_head(self, file: str) -> None:
        """Check that the expected record is there."""
        if self._expected is None:
            return
        if self._expected_at is None:
            self._report(
                file,
                0,
                f"no record has the hash {self._expected}: the end was cut off, or the log made anew",
            )
        elif self.last is not None and self.last.hash != self._expected:
            self.notes.append(f"the expected record is {self._expected_at}; later ones follow it")

    def _take(self, line: Line, file: str, number: int) -> None:
        seq = line.link.seq
        if not line.is_genuine:
            hint = ", or written with another key" if not self.records else ""
            self._report(file, number, f"record {seq} was changed{hint}: its hash is not that of its content")
        if self._before is not None:
            self._follow(line, self._before, file, number)
        elif seq == 1 and line.prev != NO_HASH:
            self._report(file, number, "record 1 names a record before it")
        self.records += 1
        self.first = self.first or line
        self.last = self._before = line.link
        self._ends[file] = (self._ends.get(file, (seq, seq))[0], seq)
        if line.is_genuine and line.link.hash == self._expected:
            self._expected_at = seq
        if line.is_genuine and line.record["kind"] == DeletionRecord.kind:
            self._deletions[line.record.get("first"), line.record.get("after")] = seq

    def _follow(self, line: Line, before: Link, file: str, number: int) -> None:
        seq, expected = line.link.seq, before.seq + 1
        if seq == before.seq:
            self._report(file, number, f"record {seq} is there twice")
        elif seq < expected:
            self._report(file, number, f"record {seq} follows record {before.seq}: they are not in order")
        elif seq > expected:
            gap = f"record {expected}" if seq == expected + 1 else f"records {expected} to {seq - 1}"
            self._report(file, number, f"record {seq} follows record {before.seq}: {gap} is missing here")
        elif before.hash and line.prev != before.hash:
            self._report(
                file, number, f"record {seq} does not follow this record {before.seq}: one was replaced"
            )

    def _report(self, file: str, line: int, message: str) -> None:
        self.problems.append(Problem(message, file=file, line=line))
