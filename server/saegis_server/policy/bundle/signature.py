"""Signatures: what `signature.json` of a bundle says, and what exactly is signed."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Self

from saegis.bundles import SIGNATURE_FILE
from saegis_server.policy.errors import SignatureError
from saegis_server.problem import Problem

ALGORITHM = "ed25519"
#: Hexadecimal digits of the SHA-256 of a public key that name it.
KEY_DIGITS = 16
_KEYS = {"algorithm", "key", "digest", "signature"}
_LARGEST = 4096


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature. key: the id of the key. digest: of the bundle's files. value: 64 bytes of Ed25519."""

    key: str
    digest: str
    value: bytes

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What `to_json` gave. Raises SignatureError for anything else."""
        try:
            told = json.loads(data[:_LARGEST].decode("utf-8"))
            if not isinstance(told, dict) or told.keys() != _KEYS:
                raise ValueError(f"it must have the keys {', '.join(sorted(_KEYS))}")
            if told["algorithm"] != ALGORITHM:
                raise ValueError(f"algorithm must be {ALGORITHM}")
            if not _is_hex(told["key"], KEY_DIGITS) or not _is_hex(told["digest"], 64):
                raise ValueError(f"key must have {KEY_DIGITS} hexadecimal digits and digest 64")
            value = base64.b64decode(told["signature"], validate=True)
            if len(value) != 64:
                raise ValueError("signature must be base64 of 64 bytes")
        except (ValueError, TypeError, RecursionError, binascii.Error) as error:
            message = f"cannot be read: {error}; sign the bundle again"
            raise SignatureError([Problem(message, file=SIGNATURE_FILE)]) from error
        return cls(told["key"], told["digest"], value)

    def to_json(self) -> bytes:
        """The file's content: the same bytes for the same signature."""
        told = {
            "algorithm": ALGORITHM,
            "key": self.key,
            "digest": self.digest,
            "signature": base64.b64encode(self.value).decode("ascii"),
        }
        return json.dumps(told, indent=2).encode("ascii") + b"\n"


def payload(name: str, serial: int, digest: str) -> bytes:
    """What is signed. No part holds a line's end, so it can be read in one way only."""
    return f"saegis-policy-v1\n{name}\n{serial}\n{digest}\n".encode("ascii")


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None
