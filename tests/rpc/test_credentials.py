"""Credentials over real sockets: tokens that are revoked, and certificates that name their callers."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from saegis.v1 import model_pb2
from saegis_server.rpc.auth.principals import new_token
from saegis_server.rpc.auth.roles import Role
from tests.rpc.callers import bearer, by_token, expect, identities, outcome, spied
from tests.rpc.certificates import Certificate, authority
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Running, failure, running

Code = grpc.StatusCode


def test_a_revoked_token_stops_working_at_the_next_call(tmp_path: Path) -> None:
    first, second, operate = new_token(), new_token(), frozenset((Role.OPERATE,))
    path = identities(tmp_path, {"a": (operate, by_token(first)), "b": (operate, by_token(second))})
    with running(identities=path) as server, grpc.insecure_channel(server.target) as channel:

        def code(token: str) -> grpc.StatusCode:
            get_load = Stubs.on(channel).models.GetLoad
            return outcome(lambda: get_load(model_pb2.GetLoadRequest(), metadata=bearer(token)))

        assert (code(first), code(second)) == (Code.OK, Code.OK)
        identities(tmp_path, {"b": (operate, by_token(second))})
        assert (code(first), code(second)) == (Code.UNAUTHENTICATED, Code.OK)
        path.write_text("principals: [", encoding="utf-8")
        assert (code(first), code(second)) == (Code.UNAUTHENTICATED, Code.OK)
        identities(tmp_path, {"a": (frozenset((Role.USE,)), by_token(first))})
        assert (code(first), code(second)) == (Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)


class Mutual:
    """A server that asks for certificates, and callers who have them."""

    def __init__(self, folder: Path) -> None:
        self.authority = authority("the authority")
        server = self.authority.issue("server", [x509.DNSName("localhost")])
        cert, key = server.write(folder, "server")
        ca, _ = self.authority.write(folder, "authority")
        operate = frozenset((Role.OPERATE,))
        self.token = new_token()
        self.settings: dict[str, Any] = {
            "tls": {"cert": cert, "key": key, "client_ca": ca},
            "identities": identities(
                folder,
                {
                    "alice": (operate, 'certificate: "spiffe://example.org/alice"'),
                    "bob": (operate, "certificate: [bob, bob.example.org]"),
                    "carol": (operate, by_token(self.token)),
                    "dora": (frozenset((Role.USE,)), "certificate: dora"),
                },
            ),
        }

    def load(self, server: Running, caller: Certificate | None, token: str = "") -> object:
        """Call GetLoad with a certificate."""
        own = (caller.key_pem, caller.pem) if caller else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *own)
        with grpc.secure_channel(f"localhost:{server.address.port}", credentials) as channel:
            metadata = bearer(token) if token else ()
            return Stubs.on(channel).models.GetLoad(model_pb2.GetLoadRequest(), metadata=metadata, timeout=20)


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mutual, Running]]:
    made = Mutual(tmp_path_factory.mktemp("mutual"))
    with running(**made.settings) as server:
        yield made, server


ALICE = x509.UniformResourceIdentifier("spiffe://example.org/alice")
BOB = x509.DNSName("bob.example.org")


def test_certificates_name_their_callers(
    mutual: tuple[Mutual, Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, server = mutual
    seen = spied(server, monkeypatch)
    issue = made.authority.issue
    mail = x509.RFC822Name("alice@example.org")
    known = [issue("x", [ALICE]), issue("bob"), issue("x", [mail, BOB]), issue("bob", [ALICE])]
    for caller in known:
        made.load(server, caller)
    made.load(server, known[0], made.token)
    assert [each.name for each in seen] == ["alice", "bob", "bob", "alice", "carol"]
    assert {each.tenant for each in seen} == {"t"}


STRANGERS: list[tuple[Callable[[Certificate], Certificate], str]] = [
    (lambda ca: ca.issue("eve"), "names nobody"),
    # The common name counts only where there is nothing better.
    (lambda ca: ca.issue("bob", [x509.DNSName("eve.example.org")]), "names nobody"),
    (lambda ca: ca.issue("x", [x509.DNSName("example.org")]), "names nobody"),
    (lambda ca: ca.issue("x", [ALICE, BOB]), "names several principals"),
    # What grpc tells of these is the name before the NUL.
    (lambda ca: ca.issue("x", [x509.DNSName("bob.example.org\0.eve.example")]), "cannot be printed"),
    (lambda ca: ca.issue("x", [x509.UniformResourceIdentifier(f"{ALICE.value}\0/eve")]), "cannot be printed"),
    (lambda ca: ca.issue("bob\0.eve.example"), "cannot be printed"),
    (lambda ca: ca.issue("x\n", [ALICE]), "cannot be printed"),
    (lambda ca: ca.issue("x", [ALICE, x509.DNSName("eve\x7f.example")]), "cannot be printed"),
]


@pytest.mark.parametrize(("issue", "told"), STRANGERS)
def test_certificates_of_strangers_are_refused(
    mutual: tuple[Mutual, Running], issue: Callable[[Certificate], Certificate], told: str
) -> None:
    made, server = mutual
    found = failure(lambda: made.load(server, issue(made.authority)))
    expect(found, Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert told in found.message


def test_a_certificate_does_not_make_up_for_a_bad_token_or_a_missing_role(
    mutual: tuple[Mutual, Running],
) -> None:
    made, server = mutual
    alice, dora = made.authority.issue("x", [ALICE]), made.authority.issue("dora")
    bad = failure(lambda: made.load(server, alice, new_token()))
    expect(bad, Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    expect(failure(lambda: made.load(server, dora)), Code.PERMISSION_DENIED, "ROLE_MISSING")


def test_certificates_of_others_do_not_reach_the_server(mutual: tuple[Mutual, Running]) -> None:
    made, server = mutual
    forged = authority("the authority").issue("x", [ALICE])
    for caller in (forged, None):
        assert failure(partial(made.load, server, caller)).code is Code.UNAVAILABLE
