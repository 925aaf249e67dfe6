"""Signatures: Ed25519 over a bundle's name, serial and digest, in `signature.json`; keys are PEM files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from saegis.bundles import SIGNATURE_FILE
from saegis_server.policy.errors import KeyFileError, SignatureError
from saegis_server.problem import Problem

if TYPE_CHECKING:
    from saegis_server.policy.bundle.bundle import Bundle

ALGORITHM = "ed25519"
#: How many hexadecimal digits of the SHA-256 of a public key are its id.
KEY_DIGITS = 16
_KEYS = {"algorithm", "key", "digest", "signature"}
_LARGEST_SIGNATURE = 4096
_LARGEST_KEY_FILE = 16 * 1024


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature. key: the id of the key. digest: of the bundle's files. value: 64 bytes of Ed25519."""

    key: str
    digest: str
    value: bytes

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The signature that `to_json` wrote. Raises SignatureError for anything else."""
        try:
            fields = json.loads(data[:_LARGEST_SIGNATURE].decode("utf-8"))
            if not isinstance(fields, dict) or fields.keys() != _KEYS:
                raise ValueError(f"it must have the keys {', '.join(sorted(_KEYS))}")
            if fields["algorithm"] != ALGORITHM:
                raise ValueError(f"algorithm must be {ALGORITHM}")
            if not _is_hex(fields["key"], KEY_DIGITS) or not _is_hex(fields["digest"], 64):
                raise ValueError(f"key must have {KEY_DIGITS} hexadecimal digits and digest 64")
            value = base64.b64decode(fields["signature"], validate=True)
            if len(value) != 64:
                raise ValueError("signature must be base64 of 64 bytes")
        except (ValueError, TypeError, RecursionError, binascii.Error) as error:
            message = f"cannot be read: {error}; sign the bundle again"
            raise SignatureError([Problem(message, file=SIGNATURE_FILE)]) from error
        return cls(fields["key"], fields["digest"], value)

    def to_json(self) -> bytes:
        """The content of signature.json. The same signature always gives the same bytes."""
        fields = {
            "algorithm": ALGORITHM,
            "key": self.key,
            "digest": self.digest,
            "signature": base64.b64encode(self.value).decode("ascii"),
        }
        return json.dumps(fields, indent=2).encode("ascii") + b"\n"


def payload(name: str, serial: int, digest: str) -> bytes:
    """The bytes that are signed. No part holds a newline, so they can be read in only one way."""
    return f"saegis-policy-v1\n{name}\n{serial}\n{digest}\n".encode("ascii")


def _is_hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{digits}}}", value) is not None


def new_key() -> tuple[bytes, bytes]:
    """A new private key and its public key, both PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key: the first digits of the SHA-256 of its 32 bytes."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:KEY_DIGITS]


def sign(bundle: Bundle, key: Ed25519PrivateKey) -> Bundle:
    """The bundle with a new signature, which replaces any that it had."""
    value = key.sign(payload(bundle.policy.name, bundle.policy.serial, bundle.digest))
    return replace(bundle, signature=Signature(key_id(key.public_key()), bundle.digest, value))


def verify(bundle: Bundle, keys: Sequence[Ed25519PublicKey]) -> str:
    """The id of the key that signed the bundle, one of `keys`.

    Raises SignatureError for a bundle that is not signed, is signed by another key, or was changed since.
    """
    signature = bundle.signature
    if signature is None:
        raise _refusal("the bundle is not signed; sign it with: saegis policy sign")
    candidates = [key for key in keys if key_id(key) == signature.key]
    if not candidates:
        known = ", ".join(map(key_id, keys)) or "none"
        raise _refusal(f"signed by the key {signature.key}, which is not trusted; trusted: {known}")
    if signature.digest != bundle.digest:
        raise _refusal(
            f"signed were files of the digest {signature.digest[:KEY_DIGITS]}, these have "
            f"{bundle.digest[:KEY_DIGITS]}: they were changed; sign the bundle again"
        )
    signed = payload(bundle.policy.name, bundle.policy.serial, bundle.digest)
    for key in candidates:
        with suppress(InvalidSignature):
            key.verify(signature.value, signed)
            return signature.key
    raise _refusal(f"the signature is not one of the key {signature.key} for this bundle; sign it again")


def _refusal(message: str) -> SignatureError:
    return SignatureError([Problem(message, file=SIGNATURE_FILE)])


def write_new_key(path: Path) -> Ed25519PublicKey:
    """Make a key pair: the private key at `path`, for its owner alone to read, the public key beside it.

    Raises KeyFileError if either file exists or cannot be written. Nothing is overwritten.
    """
    private, public = new_key()
    beside = public_path(path)
    _create(path, private, 0o600)
    try:
        _create(beside, public, 0o644)
    except KeyFileError:
        path.unlink()
        raise
    return load_public_key(beside)


def public_path(path: Path) -> Path:
    """The path of the public key that belongs to the private key at `path`."""
    return path.with_name(f"{path.name}.pub")


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The private key of a PEM file. Raises KeyFileError, whose message never quotes the file."""
    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise _no_key(path, "its private key has a password; take that off first") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "holds no private key in PEM; make one with: saegis policy keygen") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "holds a private key that is not of Ed25519")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The public key of a PEM file. Raises KeyFileError, also for a private key: no server needs one."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise _no_key(path, f"holds a private key; give the public one, {public_path(path).name}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "holds no public key in PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "holds a public key that is not of Ed25519")
    return key


def _no_key(path: Path, message: str) -> KeyFileError:
    return KeyFileError([Problem(message, file=str(path))])


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise _no_key(path, f"cannot be read: {error.strerror}") from error


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise _no_key(path, "exists; keys are never overwritten, name another file") from error
    except OSError as error:
        raise _no_key(path, f"cannot be written: {error.strerror}") from error
