"""How servers are reached: TLS, tokens, loopback rules, health, settings."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

import saegis
from saegis.channel import channel_credentials, channel_options, is_loopback
from saegis.v1 import model_pb2
from tests.client.conftest import Caller
from tests.client.loopback import Failure, Loopback, start
from tests.tools import program

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
GENERATION = "saegis.v1.GenerationService"


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "127.0.0.1:1",
        "127.8.8.8:1",
        "[::1]:1",
        "dns:///localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:1,[::1]:2",
        "unix:/run/saegis.sock",
        "localhost",
        "[::1]",
    ],
)
def test_loopback_targets_need_no_tls(target: str) -> None:
    assert is_loopback(target)
    assert channel_credentials(target, None, insecure=False) is None


@pytest.mark.parametrize(
    "target",
    [
        "example.org:443",
        "10.0.0.1:1",
        "localhost.example.org:1",
        "dns:///example.org:1",
        "[2001:db8::1]:1",
        "0.0.0.0:1",
        "dns://192.0.2.1/localhost:1",
        "ipv4:127.0.0.1:1,192.0.2.1:1",
    ],
)
def test_all_others_are_encrypted_unless_told_otherwise(target: str) -> None:
    assert not is_loopback(target)
    assert isinstance(channel_credentials(target, None, insecure=False), grpc.ChannelCredentials)
    assert channel_credentials(target, None, insecure=True) is None
    assert isinstance(channel_credentials("127.0.0.1:1", saegis.TLS(), False), grpc.ChannelCredentials)


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("", "is empty"),
        (" ", "is empty"),
        ("a host:1", "has a space"),
        ("host\n:1", "cannot be printed"),
        ("\udcff:1", "cannot be printed"),
        ("http://localhost:50051", "is a URL"),
        (":50051", "names no host"),
        ("[::1", "names no host"),
        ("127.0.0.1:80@example.org:1", "names no host"),
        ("localhost:", "no port"),
        ("localhost:0", "no port"),
        ("localhost:99999", "no port"),
        ("localhost:http", "no port"),
        ("ipv4:127.0.0.1:1,127.0.0.1:99999", "no port"),
        ("ipv4:127.0.0.1:1,", "names no host"),
        ("unix:", "names no socket"),
        ("unix:///", "names no socket"),
    ],
)
@pytest.mark.parametrize("client", [saegis.Client, saegis.AsyncClient])
def test_a_target_that_can_be_none_is_refused(client: Any, target: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        client(target)
    assert "host:port" in str(caught.value)


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
def test_no_proxy_stands_before_this_machine(
    loopback: Loopback, call: Caller, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A proxy, which would say that nobody is there, is not asked for what is on this machine."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse(num_running_reqs=3)
    assert call("load", settings={"max_attempts": 1}).num_running_reqs == 3


def test_other_machines_are_reached_through_the_proxy() -> None:
    def options(target: str) -> dict[str, str | int]:
        return dict(channel_options(target, max_attempts=1, keepalive_seconds=30.0, tls=None))

    assert options("unix:/run/saegis.sock")["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in options("example.org:443")
    assert "grpc.enable_http_proxy" not in options("dns://192.0.2.1/localhost:443")


def test_calls_go_round_and_what_a_server_dies_with_is_asked_of_the_others(
    loopback: Loopback, call: Caller
) -> None:
    """A megabyte is asked again as well, of which gRPC by itself keeps a quarter."""
    other = Loopback()
    dying = start(other)
    for each in (loopback, other):
        each.answers["GetLoad"] = model_pb2.GetLoadResponse(num_running_reqs=3)
        each.answers["Tokenize"] = model_pb2.TokenizeResponse(token_ids=[7])
    first, both = loopback.target, f"ipv4:{loopback.target},{other.target}"
    loopback.target = both
    with saegis.Client(both) as client:
        give_up = time.monotonic() + 10
        while not (loopback.received and other.received) and time.monotonic() < give_up:
            client.load()
        asked = len(loopback.received), len(other.received)
        for _ in range(20):
            client.load()
        assert (len(loopback.received), len(other.received)) == (asked[0] + 10, asked[1] + 10)
    other.pause_seconds, other.ended = 30.0, threading.Event()
    loopback.received.clear()
    other.received.clear()
    killer = threading.Thread(target=stop_once_asked, args=(dying, other))
    killer.start()
    for _ in range(50):
        assert call("tokenize", "x" * 2**20, timeout=20).token_ids == (7,)
        if other.received:
            break
    killer.join()
    assert [each.method for each in other.received] == ["Tokenize"]
    assert first in both


def stop_once_asked(server: grpc.Server, loopback: Loopback) -> None:
    """End a server, and with it what it does, once it is at work."""
    give_up = time.monotonic() + 20
    while not loopback.received and time.monotonic() < give_up:
        time.sleep(0.01)
    server.stop(None).wait()


@pytest.mark.parametrize("seconds", [1e-9, 1e300])
def test_any_keepalive_is_one_of_grpc(loopback: Loopback, call: Caller, seconds: float) -> None:
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse(num_running_reqs=3)
    assert call("load", settings={"keepalive_seconds": seconds}).num_running_reqs == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls": saegis.TLS(), "insecure": True}, "tls and insecure contradict"),
        ({"max_attempts": 0}, "max_attempts must be from 1 to 5, not 0"),
        ({"max_attempts": 6}, "not 6"),
        ({"keepalive_seconds": 0}, "keepalive_seconds must be positive, not 0"),
        ({"keepalive_seconds": float("nan")}, "keepalive_seconds"),
        ({"timeout": -1}, "timeout must be positive, not -1"),
        ({"token": "one\ntwo"}, "the token cannot be sent"),
        ({"token": "schlüssel"}, "the token cannot be sent"),
        ({"token": "two words"}, "the token cannot be sent"),
    ],
)
@pytest.mark.parametrize("client", [saegis.Client, saegis.AsyncClient])
def test_wrong_settings_are_refused(client: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        client("127.0.0.1:1", **settings)


def test_tls_takes_cert_and_key_together() -> None:
    with pytest.raises(ValueError, match="cert and key go together"):
        saegis.TLS(cert=b"x")
    with pytest.raises(FileNotFoundError):
        saegis.Client("127.0.0.1:1", tls=saegis.TLS(ca="/nonexistent/ca.pem"))


def test_token_and_user_agent_are_sent(loopback: Loopback, call: Caller) -> None:
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse()
    call("load", settings={"token": "secret"})
    call("load")
    with_token, without = (received.metadata for received in loopback.received)
    assert with_token["authorization"] == "Bearer secret"
    assert "authorization" not in without
    assert without["user-agent"].startswith(f"saegis-python/{saegis.__version__} ")


def test_a_token_that_is_not_given_is_that_of_the_environment(
    loopback: Loopback, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse()
    monkeypatch.setenv("SAEGIS_TOKEN", "there")
    for settings in ({}, {"token": "given"}, {"token": ""}):
        call("load", settings=settings)
    sent = [received.metadata.get("authorization") for received in loopback.received]
    assert sent == ["Bearer there", "Bearer given", None]


@pytest.mark.parametrize("client", [saegis.Client, saegis.AsyncClient])
def test_a_target_that_is_not_given_is_that_of_the_environment(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAEGIS_SERVER", "unix:/run/there.sock")
    assert client().target == "unix:/run/there.sock"
    assert client("127.0.0.1:1").target == "127.0.0.1:1"
    monkeypatch.setenv("SAEGIS_SERVER", "")
    assert client().target == "127.0.0.1:50051"
    monkeypatch.setenv("SAEGIS_SERVER", "http://there:1")
    with pytest.raises(ValueError, match="is a URL"):
        client()
    monkeypatch.setenv("SAEGIS_TOKEN", "one\ntwo")
    with pytest.raises(ValueError, match="the token cannot be sent"):
        client("127.0.0.1:1")


def test_health(loopback: Loopback, call: Caller) -> None:
    assert call("healthy") is True
    assert call("healthy", "saegis.v1.Unknown") is False
    loopback.readiness.set(GENERATION, NOT_SERVING)
    assert call("healthy") is False
    with pytest.raises(saegis.DeadlineExceeded, match=f"{loopback.target} did not become ready in time"):
        call("wait_until_ready", 0.2)


def test_wait_until_ready_waits_for_it(loopback: Loopback, call: Caller) -> None:
    loopback.readiness.set(GENERATION, NOT_SERVING)
    threading.Timer(0.3, loopback.readiness.set, [GENERATION, SERVING]).start()
    started = time.monotonic()
    call("wait_until_ready", 10)
    assert 0.25 < time.monotonic() - started < 5


def test_wait_until_ready_waits_for_a_server_that_is_not_there_yet() -> None:
    later = Loopback()
    servers: list[grpc.Server] = []
    probe = Loopback()
    server = start(probe)
    server.stop(None).wait()

    def start_later() -> None:
        servers.append(start(later, port=int(probe.target.rpartition(":")[2])))

    timer = threading.Timer(0.3, start_later)
    timer.start()
    with saegis.Client(probe.target) as client:
        client.wait_until_ready(10)
        assert client.healthy()
    timer.join()
    servers[0].stop(None).wait()


async def test_a_server_that_knows_no_health_is_an_error() -> None:
    served = Loopback()
    server = start(served, with_health=False)
    with saegis.Client(served.target) as client, pytest.raises(saegis.Unimplemented):
        client.wait_until_ready(5)
    async with saegis.AsyncClient(served.target) as twin:
        with pytest.raises(saegis.Unimplemented):
            await twin.wait_until_ready(5)
    server.stop(None).wait()


def test_calls_to_a_client_may_come_from_several_threads(loopback: Loopback) -> None:
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse()
    loopback.failures["GetLoad"] = [Failure(grpc.StatusCode.NOT_FOUND)] * 8
    outcomes: list[str] = []
    with saegis.Client(loopback.target) as client:

        def ask() -> None:
            try:
                client.load()
                outcomes.append("answer")
            except saegis.NotFound:
                outcomes.append("not found")

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(outcomes) == ["answer"] * 8 + ["not found"] * 8


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of PEM files: an authority `ca`, and `server` and `client` certificates that it signed."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run([program("openssl"), *arguments], cwd=folder, check=True, capture_output=True)

    ecdsa = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *ecdsa, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    (folder / "names").write_text("subjectAltName=DNS:saegis.test\n")
    for name in ("server", "client"):
        openssl("req", *ecdsa, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed_by = (
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "names",
            "-days",
            "2",
        )
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed_by)
    return folder


@pytest.fixture
def secured(certificates: Path) -> Iterator[Loopback]:
    served = Loopback(answers={"GetLoad": model_pb2.GetLoadResponse(num_running_reqs=3)})
    pair = ((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair], (certificates / "ca.pem").read_bytes(), True)
    server = start(served, credentials)
    yield served
    server.stop(None).wait()


async def test_mutual_tls(secured: Loopback, certificates: Path) -> None:
    tls = saegis.TLS(
        ca=certificates / "ca.pem",
        cert=str(certificates / "client.pem"),
        key=(certificates / "client.key").read_bytes(),
        server_name="saegis.test",
    )
    with saegis.Client(secured.target, tls=tls) as client:
        assert client.load().num_running_reqs == 3
    async with saegis.AsyncClient(secured.target, tls=tls) as twin:
        assert (await twin.load()).num_running_reqs == 3


@pytest.mark.parametrize("missing", ["ca", "cert", "name", "tls"])
def test_every_part_of_tls_counts(secured: Loopback, certificates: Path, missing: str) -> None:
    ca = None if missing == "ca" else certificates / "ca.pem"
    name = None if missing == "name" else "saegis.test"
    if missing == "cert":
        tls = saegis.TLS(ca=ca, server_name=name)
    else:
        pair = (certificates / "client.pem", certificates / "client.key")
        tls = saegis.TLS(ca=ca, cert=pair[0], key=pair[1], server_name=name)
    chosen = None if missing == "tls" else tls
    with (
        saegis.Client(secured.target, tls=chosen, max_attempts=1) as client,
        pytest.raises(saegis.Unavailable),
    ):
        client.load(timeout=5)
    assert secured.received == []
