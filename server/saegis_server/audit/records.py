"""The records of the audit log: a dataclass for each kind, their form as plain JSON, and masking."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
PlainJson: TypeAlias = "bool | int | float | str | list[PlainJson] | dict[str, PlainJson] | None"
Fields: TypeAlias = Mapping[str, Json]

MASKED = "[masked]"
#: The part of a pointer that means every item.
EVERY = "*"
#: The keys that the log itself adds to every record; `masked` only if something is masked.
RESERVED = ("seq", "time", "kind", "prev", "hash", "masked")


class RecordKind(StrEnum):
    """What a record is about; each has a dataclass below."""

    START = "start"
    STOP = "stop"
    REPAIR = "repair"
    LOST = "lost"
    DELETION = "deletion"
    DECISION = "decision"
    ANSWER = "answer"
    POLICY = "policy"
    DIRECTION = "direction"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A record; `kind` says of which kind."""

    kind: ClassVar[RecordKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord(AuditRecord):
    """The log was opened. version: the server's. chain: "sha256", or "hmac-sha256" if it is keyed."""

    kind: ClassVar[RecordKind] = RecordKind.START
    version: str
    process: int
    chain: str
    fsync: str
    prompts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRecord(AuditRecord):
    """The log was closed in good order."""

    kind: ClassVar[RecordKind] = RecordKind.STOP
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRecord(AuditRecord):
    """A torn last line was cut off when the log was opened: how many bytes, and the file that holds them."""

    kind: ClassVar[RecordKind] = RecordKind.REPAIR
    bytes: int
    kept_in: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRecord(AuditRecord):
    """How many records could not be written since the record before; `reason`: why the last could not."""

    kind: ClassVar[RecordKind] = RecordKind.LOST
    records: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionRecord(AuditRecord):
    """Files are deleted, as the setting `keep` says. What stays begins with record `first`.

    after: the hash of the record before that one.
    """

    kind: ClassVar[RecordKind] = RecordKind.DELETION
    files: tuple[str, ...]
    first: int
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord(AuditRecord):
    """What was decided on a request, before anything is generated.

    denials, would_deny: policy, rule, message, field, mode and shared of each. rules: policy, rule, action
    and mode of each that applies. edits: what a replay needs of each requested edit and watch: path, site,
    op, sae, index, value, unit, phase, and of a redirect to (sae and index), strength and threshold; a
    direction has no sae and index, and no to, but its digest (direction, to_direction) and, where the request
    referred to it by name, direction_name. uses: use, field and value of each use beyond the ordinary.
    trace_id: its trace's, empty without one. prompt: its text, written only if the settings say so.
    pictures: of each picture the digest of its file (SHA-256), kind, width, height and how many bytes and
    tokens; never the picture.
    """

    kind: ClassVar[RecordKind] = RecordKind.DECISION
    decision_id: str
    request_id: str
    principal: str
    tenant: str
    roles: tuple[str, ...]
    method: str
    model: str
    policy_revision: str
    allowed: bool
    denials: tuple[Fields, ...] = ()
    would_deny: tuple[Fields, ...] = ()
    rules: tuple[Fields, ...] = ()
    program_digest: str = ""
    prompt_tokens: int = 0
    edits: tuple[Fields, ...] = ()
    uses: tuple[Fields, ...] = ()
    trace_id: str = ""
    pictures: tuple[Fields, ...] = ()
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecord(AuditRecord):
    """What was done for a request, however it ended. Written before the caller gets the end.

    finish_reasons: how each completion ended: its finish reason, "scored", "refused" by a condition,
    "cancelled" by the caller, or the error's name. conditions: the name of each that was judged, and whether
    and at which token it held. peaks: by rule and feature, in feature units; null for a value that is not
    finite. first_token_steered, first_token_read: whether rows acted at, and conditions read, the first token
    of the text. trace_id: that of the request's trace, empty without one. rules: of each rule that did
    anything policy, rule, mode, tokens on which it acted, completions that it ended, tokens at which its
    condition held, and the targets that it changed and that its condition read: site, sae and index of a
    feature or the direction, tokens on which it was changed or active, and the largest value read. own_edits:
    path and op of each of the request's own, and its target. Tokens are of the prompt and of the
    completions; null where they were not counted.
    """

    kind: ClassVar[RecordKind] = RecordKind.ANSWER
    decision_id: str
    request_id: str
    tenant: str
    program_digest: str
    policy_revision: str
    finish_reasons: tuple[str, ...]
    usage: Mapping[str, int]
    sites: tuple[Fields, ...] = ()
    conditions: tuple[Fields, ...] = ()
    peaks: Fields = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    first_token_steered: bool = False
    first_token_read: bool = False
    trace_id: str = ""
    rules: tuple[Fields, ...] = ()
    own_edits: tuple[Fields, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord(AuditRecord):
    """A policy was put, rolled back or rejected (`action`), by a principal. problems: why it is rejected."""

    kind: ClassVar[RecordKind] = RecordKind.POLICY
    action: str
    name: str
    revision: str = ""
    serial: int = 0
    digest: str = ""
    by: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionRecord(AuditRecord):
    """A direction is uploaded or deleted (`action`) by a principal of a tenant. Written before it is done."""

    kind: ClassVar[RecordKind] = RecordKind.DIRECTION
    action: str
    digest: str
    name: str
    site: str
    tenant: str
    by: str
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRecord(AuditRecord):
    """A failed authentication. suppressed: how many before it the bound on their rate left out."""

    kind: ClassVar[RecordKind] = RecordKind.IDENTITY
    method: str
    peer: str
    reason: str
    suppressed: int = 0


def payload(record: AuditRecord, prompts: bool = False) -> dict[str, PlainJson]:
    """A record's kind and fields as plain JSON; the prompt is left out unless `prompts`.

    Raises ValueError, with the field, for what JSON cannot hold.
    """
    plain: dict[str, PlainJson] = {"kind": str(record.kind)}
    for field in dataclasses.fields(record):
        if field.name != "prompt" or prompts:
            plain[field.name] = _plain(getattr(record, field.name), f"{record.kind}.{field.name}")
    return plain


def _plain(value: Json, path: str) -> PlainJson:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path}: has no form in UTF-8: {error.reason}") from error
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} has no form in JSON")
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{path}: keys must be strings")
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{path}: {type(value).__name__} has no form in JSON")


def check_pointer(pointer: str) -> None:
    """Raise ValueError for what is no JSON pointer, or points at a field that the chain needs."""
    if not pointer.startswith("/") or not all(_parts(pointer)):
        # No field of a record has an empty name, so such a pointer would hide nothing.
        raise ValueError(f"{pointer!r} is no JSON pointer into a record; write it like '/edits/0/label'")
    first = _parts(pointer)[0]
    if first in (*RESERVED, EVERY):
        raise ValueError(f"{pointer!r}: {first!r} cannot be masked")


def mask(payload: dict[str, PlainJson], pointers: Sequence[str]) -> list[str]:
    """Replace the values at the pointers, in place; returns the pointers of the replaced values."""
    replaced: list[str] = []
    for pointer in pointers:
        _mask(payload, _parts(pointer), "", replaced)
    return sorted(set(replaced))


def _mask(value: Any, parts: Sequence[str], path: str, replaced: list[str]) -> None:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        if parts[0] not in (EVERY, str(key)):
            continue
        place = f"{path}/{str(key).replace('~', '~0').replace('/', '~1')}"
        if parts[1:]:
            _mask(value[key], parts[1:], place, replaced)
        else:
            value[key] = MASKED
            replaced.append(place)


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
