"""Bundles made to order for the tests of the store: good ones by serial, and one broken in each way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import sign
from saegis_server.policy.decide.world import World
from saegis_server.steering.site import Widths
from saegis_server.steering.table import Capacity
from tests.rpc import tiny

NAME = "harm"


@cache
def key(number: int = 0) -> Ed25519PrivateKey:
    """A private key, the same for the same number."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def public(*numbers: int) -> list[Ed25519PublicKey]:
    """The public keys of some numbers."""
    return [key(number).public_key() for number in numbers]


def world(catalog_is_whole: bool = True) -> World:
    """What the policies are compiled for: the tiny model's sites and SAEs, or SAEs without the first one."""
    catalog = tiny.catalog()
    if not catalog_is_whole:
        catalog = type(catalog)(catalog.entries[1:])
    return World(
        "tiny", tiny.SITES, Widths(tiny.WIDTH), catalog, Capacity(edits=8, rules=2, bans=8, watches=8)
    )


def files(
    serial: int = 1,
    *,
    name: str = NAME,
    target: str = "{sae: first, index: 7}",
    tenants: str = '["*"]',
    extra: str = "",
    expect: str = "allow",
) -> dict[str, bytes]:
    """The files of a bundle that bans one feature; its revision is named after its serial."""
    policy = f"""\
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: {serial}
revision: r{serial}
description: Serial {serial}.
match: {{tenants: {tenants}}}
{extra}
rules:
  - id: ban-{serial}
    ban: {{features: [{target}], strength: {serial}}}
"""
    cases = f"""\
apiVersion: saegis.dev/v1
kind: PolicyCases
cases:
  - name: no edits
    request: {{tenant: {tenants.strip("[]").split(",")[0] if "*" not in tenants else "default"}, model: tiny}}
    expect: {{decision: {expect}, rules: [ban-{serial}]}}
"""
    return {"policy.yaml": policy.encode(), "tests/cases.yaml": cases.encode()}


def bundle(serial: int = 1, *, signed: int | None = None, **options: str) -> Bundle:
    """A good bundle, signed with the key of a number."""
    made = Bundle.from_files(files(serial, **options))
    return sign(made, key(signed)) if signed is not None else made


def archive(serial: int = 1, *, signed: int | None = None, **options: str) -> bytes:
    """The archive of a good bundle."""
    return bundle(serial, signed=signed, **options).archive()


def _with(path: str, old: bytes, new: bytes, serial: int) -> bytes:
    from saegis.bundles import write_archive

    made = files(serial)
    assert old in made[path]
    return write_archive({**made, path: made[path].replace(old, new)})


#: One broken archive of each kind, given a serial that would be a step forward; the kind and a part of what
#: is said of it.
BROKEN: Sequence[tuple[str, Callable[[int], bytes], str]] = (
    ("bundle", lambda serial: b"no archive at all", ""),
    ("syntax", lambda serial: _with("policy.yaml", b"rules:", b"rules: [", serial), "policy.yaml"),
    ("schema", lambda serial: _with("policy.yaml", b"strength:", b"strenght:", serial), "strenght"),
    ("serial", lambda serial: archive(1, extra="urgent: true"), "serial"),
    ("compile", lambda serial: archive(serial, target="{sae: first, index: 4800}"), "4800"),
    ("compile", lambda serial: archive(serial, target="{sae: absent, index: 1}"), "absent"),
    ("cases", lambda serial: archive(serial, expect="deny"), "no edits"),
)
