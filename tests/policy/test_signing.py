"""Signing: a signature holds for exactly the files, name and serial that were signed, by a known key."""

from __future__ import annotations

import base64
import json
import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis.bundles import SIGNATURE_FILE
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import (
    Signature,
    key_id,
    load_private_key,
    load_public_key,
    payload,
    public_path,
    sign,
    verify,
    write_new_key,
)
from saegis_server.policy.errors import KeyFileError, PolicyError, SignatureError
from tests.policy.bundles import POLICY, bundle_files

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = PRIVATE.public_key()
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def signed_files() -> dict[str, bytes]:
    """The files of a signed bundle, its signature among them."""
    bundle = sign(Bundle.from_files(bundle_files()), PRIVATE)
    assert bundle.signature is not None
    return {**bundle.files, SIGNATURE_FILE: bundle.signature.to_json()}


def test_a_signed_bundle_is_verified_also_after_its_archive() -> None:
    bundle = sign(Bundle.from_files(bundle_files()), PRIVATE)
    again = Bundle.from_archive(bundle.archive())
    assert again == bundle
    assert again.archive() == bundle.archive()
    assert SIGNATURE_FILE not in again.files
    assert again.digest == Bundle.from_files(bundle_files()).digest
    assert verify(again, [OTHER.public_key(), PUBLIC]) == key_id(PUBLIC)


def test_signing_again_replaces_the_signature() -> None:
    bundle = sign(sign(Bundle.from_files(bundle_files()), PRIVATE), OTHER)
    assert verify(bundle, [OTHER.public_key()]) == key_id(OTHER.public_key())
    with pytest.raises(SignatureError, match="not trusted"):
        verify(bundle, [PUBLIC])


@pytest.mark.parametrize(("keys", "told"), [([], "trusted: none"), ([OTHER.public_key()], "is not trusted")])
def test_an_unknown_key_is_refused(keys: list[Ed25519PublicKey], told: str) -> None:
    bundle = sign(Bundle.from_files(bundle_files()), PRIVATE)
    with pytest.raises(SignatureError, match=told) as caught:
        verify(bundle, keys)
    assert key_id(PUBLIC) in str(caught.value)


def test_a_bundle_without_a_signature_is_refused() -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        verify(Bundle.from_files(bundle_files()), [PUBLIC])


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_a_change_of_any_byte_of_any_file_is_found(seed: int) -> None:
    """The signature's own file included, as far as the change means anything there."""
    draw = random.Random(seed)
    files = signed_files()
    path = draw.choice(sorted(files))
    data = bytearray(files[path])
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)
    files[path] = bytes(data)
    if path == SIGNATURE_FILE and _same_signature(files[path]):
        return
    with pytest.raises(PolicyError):
        verify(Bundle.from_files(files), [PUBLIC])


def _same_signature(data: bytes) -> bool:
    """Whether the file still says the same, as where only a space became a line's end."""
    try:
        return Signature.from_json(data) == Signature.from_json(signed_files()[SIGNATURE_FILE])
    except SignatureError:
        return False


def test_files_added_removed_renamed_or_swapped_are_found() -> None:
    files = signed_files()
    added = {
        **files,
        "rules/more.yaml": files["rules/part.yaml"].replace(b"less", b"more").replace(b"keep", b"k"),
    }
    removed = {path: data for path, data in files.items() if path != "calibration.json"}
    renamed = {path.replace("part", "party"): data for path, data in files.items()}
    swapped = {**files, "README.md": files["calibration.json"], "calibration.json": b"{}"}
    for changed in (added, removed, renamed, swapped):
        with pytest.raises(SignatureError, match="they were changed"):
            verify(Bundle.from_files(changed), [PUBLIC])


def test_a_signature_for_another_bundle_does_not_hold_with_this_ones_digest() -> None:
    files = bundle_files()
    other = sign(
        Bundle.from_files({**files, "policy.yaml": POLICY.replace("serial: 3", "serial: 4").encode()}),
        PRIVATE,
    )
    bundle = Bundle.from_files(files)
    assert other.signature is not None
    forged = replace(bundle, signature=replace(other.signature, digest=bundle.digest))
    with pytest.raises(SignatureError, match="is not one of the key"):
        verify(forged, [PUBLIC])


def test_a_key_that_only_claims_the_id_of_another_is_refused() -> None:
    bundle = sign(Bundle.from_files(bundle_files()), OTHER)
    assert bundle.signature is not None
    forged = replace(bundle, signature=replace(bundle.signature, key=key_id(PUBLIC)))
    with pytest.raises(SignatureError, match="is not one of the key"):
        verify(forged, [PUBLIC])


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True)
SUBJECTS = st.tuples(NAMES, st.integers(1, 10**12), st.binary(max_size=4).map(lambda data: data.hex()))


@settings(max_examples=200, deadline=None)
@given(SUBJECTS, SUBJECTS)
def test_the_payload_tells_all_subjects_apart(one: tuple[str, int, str], other: tuple[str, int, str]) -> None:
    assert (payload(*one) == payload(*other)) == (one == other)


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "rsa"},
        {"algorithm": None},
        {"key": "abc"},
        {"key": 5},
        {"key": "A" * 16},
        {"digest": "0" * 63},
        {"signature": "AAAA"},
        {"signature": "*" * 88},
        {"signature": None},
        {"signature": ["x"]},
        {"more": 1},
    ],
)
def test_a_signature_file_that_is_none_is_named(change: dict[str, object]) -> None:
    told = json.loads(signed_files()[SIGNATURE_FILE])
    with pytest.raises(SignatureError, match=r"signature\.json: cannot be read"):
        Bundle.from_files({**bundle_files(), SIGNATURE_FILE: json.dumps({**told, **change}).encode()})


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 4000, b"{", b" " * 5000 + b"{}"])
def test_bytes_that_are_no_signature_are_named(data: bytes) -> None:
    with pytest.raises(SignatureError, match=r"signature\.json: cannot be read"):
        Bundle.from_files({**bundle_files(), SIGNATURE_FILE: data})


def test_the_signature_file_can_be_checked_by_hand() -> None:
    told = json.loads(signed_files()[SIGNATURE_FILE])
    digest = Bundle.from_files(bundle_files()).digest
    PUBLIC.verify(base64.b64decode(told["signature"]), f"saegis-policy-v1\nacme.base\n3\n{digest}\n".encode())
    assert told["algorithm"] == "ed25519"


def test_a_new_key_is_for_its_owner_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "policy.key"
    public = write_new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (
        key_id(load_private_key(path).public_key())
        == key_id(load_public_key(public_path(path)))
        == key_id(public)
    )
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        write_new_key(path)
    assert path.read_bytes() == before


def test_no_private_key_is_left_where_the_public_one_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.key"
    public_path(path).write_text("mine", encoding="utf-8")
    with pytest.raises(KeyFileError, match=r"policy\.key\.pub: exists"):
        write_new_key(path)
    assert not path.exists()
    with pytest.raises(KeyFileError, match="cannot be written: No such file"):
        write_new_key(tmp_path / "nowhere" / "policy.key")


def test_files_that_hold_no_such_key_are_refused_without_quoting_them(tmp_path: Path) -> None:
    path = tmp_path / "policy.key"
    write_new_key(path)
    secret = path.read_text(encoding="utf-8").splitlines()[1]
    with pytest.raises(KeyFileError, match=r"holds a private key; give the public one") as caught:
        load_public_key(path)
    assert secret not in str(caught.value)
    with pytest.raises(KeyFileError, match="holds no private key"):
        load_private_key(public_path(path))
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pw"))
    )
    with pytest.raises(KeyFileError, match="has a password"):
        load_private_key(locked)
    other = generate_private_key(SECP256R1())
    curve = tmp_path / "curve.pem"
    curve.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="not of Ed25519"):
        load_private_key(curve)
    curve.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileError, match="not of Ed25519"):
        load_public_key(curve)
    curve.write_bytes(b"nothing")
    for load in (load_private_key, load_public_key):
        with pytest.raises(KeyFileError, match=r"curve\.pem: holds no"):
            load(curve)
        with pytest.raises(KeyFileError, match="cannot be read: No such file"):
            load(tmp_path / "nowhere")
