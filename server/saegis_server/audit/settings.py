"""The settings of the audit log: where it lies, how safely it is written, and what it may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from saegis_server.audit import AuditKeyError, Fsync, OnFailure
from saegis_server.audit.records import check_pointer

LEAST_KEY_BYTES = 32


class AuditSettings(BaseModel):
    """The audit log's part of the configuration.

    directory: made with mode 0700 where it is missing; it belongs to one server. interval_seconds: for
    `fsync: interval`. max_bytes: a file that would grow beyond it is closed and a new one begun; a single
    record may be larger. keep: how many closed files stay; None means all. prompts: whether the text of
    prompts is written. mask: JSON pointers (RFC 6901; a part "*" means every item) into a record, such as
    "/edits/*/label", whose values are replaced. key_file: with it the chain is keyed, and who lacks the key
    cannot forge it. queue: records that may wait to be written. identity_per_minute: failed authentications
    that are written a minute; 0 means none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    fsync: Fsync = Fsync.ALWAYS
    interval_seconds: Annotated[float, Field(gt=0.0, le=3600.0)] = 1.0
    max_bytes: Annotated[int, Field(ge=1024)] = 64 * 2**20
    keep: Annotated[int, Field(ge=1)] | None = None
    on_failure: OnFailure = OnFailure.REFUSE
    prompts: bool = False
    mask: tuple[str, ...] = ()
    key_file: Path | None = None
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    identity_per_minute: Annotated[int, Field(ge=0)] = 60

    @field_validator("mask")
    @classmethod
    def _are_pointers(cls, mask: tuple[str, ...]) -> tuple[str, ...]:
        for pointer in mask:
            check_pointer(pointer)
        return mask


def read_key(path: Path | None) -> bytes | None:
    """The key of a key file without white space around it; None for no file.

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
