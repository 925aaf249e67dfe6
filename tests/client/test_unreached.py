"""Why a server was not reached: each cause is told apart, with real certificates over real sockets."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

import saegis
from saegis import TLS, Unreached
from saegis.v1 import model_pb2
from saegis_server.cli.app import app
from tests.client.conftest import Caller
from tests.client.loopback import Loopback, start
from tests.rpc.certificates import authority

CA, OTHER = authority("ca"), authority("other")
HERE = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
SERVER, CLIENT, STRANGER = CA.issue("server", HERE), CA.issue("client"), OTHER.issue("stranger")
NOBODY = "127.0.0.1:1"


@dataclass(frozen=True)
class Targets:
    """Three servers: without TLS, with it, and with it for clients that have a certificate too."""

    plain: str
    tls: str
    mutual: str


@pytest.fixture(scope="module")
def targets() -> Iterator[Targets]:
    pair = [(SERVER.key_pem, SERVER.pem)]
    kinds = (None, grpc.ssl_server_credentials(pair), grpc.ssl_server_credentials(pair, CA.pem, True))
    served = [Loopback(answers={"GetLoad": model_pb2.GetLoadResponse()}) for _ in kinds]
    servers = [start(each, kind) for each, kind in zip(served, kinds, strict=True)]
    yield Targets(*(each.target for each in served))
    for server in servers:
        server.stop(None).wait()


CASES = {
    "nobody": (NOBODY, None, Unreached.NO_SERVER, "no server listens at 127.0.0.1:1: Connection refused"),
    "nobody behind a socket": (
        "unix:/nonexistent/s.sock",
        None,
        Unreached.NO_SERVER,
        "no server listens at unix:/nonexistent/s.sock: No such file",
    ),
    "no host": (
        "nobody.invalid:1",
        TLS(ca=CA.pem),
        Unreached.UNKNOWN_HOST,
        "nobody.invalid:1 has no address",
    ),
    "no TLS for a TLS server": ("tls", None, Unreached.TLS_EXPECTED, "seems to ask for TLS"),
    "no TLS for a mutual one": ("mutual", None, Unreached.TLS_EXPECTED, "(ca)"),
    "TLS for a plain server": ("plain", TLS(ca=CA.pem), Unreached.TLS_NOT_OFFERED, "does not speak TLS"),
    "another authority": ("tls", TLS(ca=OTHER.pem), Unreached.SERVER_NOT_TRUSTED, "Give the authority that"),
    "the system's authorities": ("tls", TLS(), Unreached.SERVER_NOT_TRUSTED, "local issuer certificate."),
    "another name": (
        "tls",
        TLS(ca=CA.pem, server_name="other.test"),
        Unreached.SERVER_NAME_DIFFERS,
        "for another name",
    ),
    "no certificate": (
        "mutual",
        TLS(ca=CA.pem),
        Unreached.CLIENT_CERTIFICATE_MISSING,
        "Give a certificate and its key (cert and key)",
    ),
    "a stranger's certificate": (
        "mutual",
        TLS(ca=CA.pem, cert=STRANGER.pem, key=STRANGER.key_pem),
        Unreached.CLIENT_CERTIFICATE_REFUSED,
        "refuse the client's certificate",
    ),
    "another one's key": (
        "mutual",
        TLS(ca=CA.pem, cert=CLIENT.pem, key=STRANGER.key_pem),
        Unreached.CERTIFICATES_UNUSABLE,
        "is the key that of the certificate?",
    ),
    "no PEM": ("tls", TLS(ca=b"no PEM"), Unreached.CERTIFICATES_UNUSABLE, "PEM files"),
}


@pytest.mark.parametrize(("target", "tls", "reason", "told"), CASES.values(), ids=list(CASES))
def test_each_cause_is_told_apart(
    targets: Targets,
    loopback: Loopback,
    call: Caller,
    target: str,
    tls: TLS | None,
    reason: Unreached,
    told: str,
) -> None:
    loopback.target = getattr(targets, target, target)
    with pytest.raises(saegis.Unavailable) as caught:
        call("load", settings={"tls": tls, "max_attempts": 1}, timeout=10)
    assert (caught.value.reason, told in caught.value.message) == (reason, True), caught.value.message
    assert loopback.target in caught.value.message
    assert "failed to connect" not in caught.value.message
    assert "backends" not in caught.value.message


async def test_a_stream_and_a_wait_tell_it_too(targets: Targets) -> None:
    with saegis.Client(targets.tls, max_attempts=1) as client:
        with pytest.raises(saegis.Unavailable, match="seems to ask for TLS"):
            next(client.stream("x"))
        with pytest.raises(saegis.DeadlineExceeded, match=r"ready in time: .* seems to ask for TLS"):
            client.wait_until_ready(0.1)
    async with saegis.AsyncClient(targets.mutual, tls=TLS(ca=CA.pem), max_attempts=1) as twin:
        with pytest.raises(saegis.Unavailable, match="cert and key"):
            await anext(twin.stream("x"))
        with pytest.raises(saegis.DeadlineExceeded, match=r"ready in time: .*cert and key"):
            await twin.wait_until_ready(0.1)


def test_the_right_certificates_reach_each_server(targets: Targets) -> None:
    own = TLS(ca=CA.pem, cert=CLIENT.pem, key=CLIENT.key_pem)
    for target, tls in ((targets.plain, None), (targets.tls, TLS(ca=CA.pem)), (targets.mutual, own)):
        with saegis.Client(target, tls=tls, max_attempts=1) as client:
            assert client.load(timeout=10).num_running_reqs == 0


def test_the_command_line_says_what_to_give_and_takes_it(targets: Targets, tmp_path: Path) -> None:
    ca, _ = CA.write(tmp_path, "ca")
    cert, key = CLIENT.write(tmp_path, "client")

    def shown(target: str, *options: str, **variables: str) -> str:
        arguments = ("features", "show", "1", "--server", target, "--timeout", "10", *options)
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300", **variables})
        assert result.exit_code == 1, result.output
        return " ".join(result.stderr.split())

    assert "next: is a server running at 127.0.0.1:1?" in shown(NOBODY)
    assert "next: name the authority of the server's certificate with --ca" in shown(targets.tls)
    assert "next: leave --ca out on this machine" in shown(targets.plain, "--ca", str(ca))
    assert "in SAEGIS_CERT and SAEGIS_KEY" in shown(targets.mutual, "--ca", str(ca))
    # This server answers nothing of the kind: it was reached.
    reached = shown(targets.mutual, "--ca", str(ca), SAEGIS_CERT=str(cert), SAEGIS_KEY=str(key))
    assert "SAEGIS_CERT" not in reached
    assert "listens" not in reached
    own = ("--client-cert", str(cert), "--client-key", str(key))
    assert shown(targets.mutual, *own, SAEGIS_CA=str(ca), SAEGIS_CERT="/no/such/file") == reached
