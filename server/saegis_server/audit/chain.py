"""The chain of the audit log: every record holds the hash of the one before it, and its own.

Records are lines of canonical JSON: keys sorted, no spaces, UTF-8. A record's hash is the SHA-256 of its
canonical JSON without `hash`; with a key it is the HMAC-SHA-256.

What the chain proves: as long as the hash of a later record is trusted, it shows whether a record was
changed, left out, moved or put in. Whoever can write the files can make a whole new chain of plain hashes,
but not a keyed one without the key. Neither shows whether whole records were cut off at the end: for this,
note the hash of the newest record (`AuditLog.head`) elsewhere and give it to `saegis audit verify
--expect-head`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saegis_server.audit import AuditKeyError
from saegis_server.audit.records import PlainJson

#: The hash that the first record holds in place of that of a record before it.
NO_HASH = "0" * 64
#: The fewest bytes that a key may have.
LEAST_KEY_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain: a record's number, from 1, and its hash in hexadecimal."""

    seq: int
    hash: str


#: The place before the first record.
BEGINNING = Link(0, NO_HASH)


class UnreadableLineError(ValueError):
    """A line that is no record: `str` says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log: the record, its place, the hash of the record before it, and the hash that fits it."""

    record: Mapping[str, PlainJson]
    link: Link
    prev: str
    expected_hash: str

    @property
    def is_genuine(self) -> bool:
        """Whether its hash fits its content."""
        return hmac.compare_digest(self.link.hash, self.expected_hash)

    def follows(self, before: Link) -> bool:
        """Whether it is the record after `before`."""
        return self.link.seq == before.seq + 1 and self.prev == before.hash


def read_key(path: Path | None) -> bytes | None:
    """The content of a key file without white space around it; None for no file.

    Raises AuditKeyError for a file that cannot be read or holds fewer than 32 bytes.
    """
    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise AuditKeyError(f"{path}: {error.strerror or error}") from error
    if len(key) < LEAST_KEY_BYTES:
        raise AuditKeyError(
            f"{path}: holds {len(key)} bytes, and a key has at least {LEAST_KEY_BYTES}; "
            "`openssl rand -hex 32` makes one"
        )
    return key


def seal(payload: Mapping[str, PlainJson], before: Link, key: bytes | None) -> tuple[bytes, Link]:
    """The line of the record after `before`, with its newline, and its place in the chain."""
    record = {**payload, "seq": before.seq + 1, "prev": before.hash}
    link = Link(before.seq + 1, _digest(_encode(record).encode(), key))
    record["hash"] = link.hash
    return _encode(record).encode() + b"\n", link


def read_line(line: bytes, key: bytes | None) -> Line:
    """The record of a line. Raises UnreadableLineError unless every byte of it is that of a record."""
    if not line.endswith(b"\n"):
        raise UnreadableLineError("the line is cut off")
    try:
        record = json.loads(line[:-1].decode())
        if not isinstance(record, dict):
            raise UnreadableLineError("the line is no JSON object")
        seq, prev, own = (record.get(name) for name in ("seq", "prev", "hash"))
        if type(seq) is not int or seq < 1 or not _is_hash(prev) or not _is_hash(own):
            raise UnreadableLineError("the record lacks its seq, prev or hash")
        if not isinstance(record.get("kind"), str) or not isinstance(record.get("time"), str):
            raise UnreadableLineError("the record lacks its kind or time")
        if _encode(record).encode() + b"\n" != line:
            raise UnreadableLineError("the line is not in the form in which records are written")
        content = {name: value for name, value in record.items() if name != "hash"}
        return Line(record, Link(seq, str(own)), str(prev), _digest(_encode(content).encode(), key))
    except UnreadableLineError:
        raise
    except (ValueError, RecursionError) as error:
        raise UnreadableLineError("the line is no JSON") from error


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.match(value) is not None


def _digest(content: bytes, key: bytes | None) -> str:
    if key is None:
        return hashlib.sha256(content).hexdigest()
    return hmac.new(key, content, hashlib.sha256).hexdigest()
