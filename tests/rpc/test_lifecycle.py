"""Starting, health, reflection, draining, the engine's death and slow readers, over real sockets."""

import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (  # type: ignore[import-untyped]
    ProtoReflectionDescriptorDatabase,
)

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import model_pb2
from saegis_server.rpc.server.listener import SERVICES
from saegis_server.rpc.wire.errors import PUSHBACK_KEY
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Failure, Running, config, embedded, eventually, failure, running

SERVING = health_pb2.HealthCheckResponse.SERVING
#: How long what takes a second may take on a machine that does other things.
SLOWEST_SECONDS = 120.0
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel: grpc.Channel, service: str = "") -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


def generate(stubs: Stubs, max_tokens: int = 4, **fields: Any) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return pb.GenerateRequest(**{"text": "the river", "sampling": sampling, **fields})


def stream(stubs: Stubs, tokens: int = tiny.CONTEXT, **sampling: Any) -> Any:
    """A stream that has begun."""
    params = pb.SamplingParams(temperature=0.0, max_tokens=tokens, **sampling)
    message = pb.GenerateRequest(text="the river", sampling=params)
    found = stubs.generation.StreamGenerate(pb.StreamGenerateRequest(request=message))
    next(found)
    return found


@pytest.fixture
def own() -> Iterator[tuple[Running, Stubs]]:
    """A server that the test may end, and stubs on it."""
    with running() as server, grpc.insecure_channel(server.target) as channel:
        yield server, Stubs.on(channel)


def test_while_it_starts_nothing_is_taken() -> None:
    server = Running(config())
    try:
        with grpc.insecure_channel(server.target) as channel:
            stubs = Stubs.on(channel)
            for service in ("", *SERVICES):
                assert health(channel, service) == NOT_SERVING
            found = failure(lambda: stubs.models.GetModel(model_pb2.GetModelRequest()))
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "STARTING")
            assert found.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
            assert int(found.trailers[PUSHBACK_KEY]) > 0
            server.open()
            for service in ("", *SERVICES):
                assert health(channel, service) == SERVING
            assert stubs.generation.Generate(generate(stubs)).choices
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watched).status == SERVING
            watched.cancel()
    finally:
        server.close()


def test_an_unknown_service_has_no_health(stubs: Stubs) -> None:
    found = failure(lambda: health(stubs.channel, "saegis.v1.NoService"))
    assert found.code is grpc.StatusCode.NOT_FOUND


def test_reflection_tells_the_contract(stubs: Stubs) -> None:
    database = ProtoReflectionDescriptorDatabase(stubs.channel)
    assert set(SERVICES) <= set(database.get_services())
    described = DescriptorPool(database).FindServiceByName("saegis.v1.GenerationService")
    assert {method.name for method in described.methods} == {"Generate", "StreamGenerate", "Score"}


def reflected(channel: grpc.Channel, version: str) -> set[str]:
    """The services that reflection of a version lists; its versions are alike on the wire."""
    ask: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=20)
    return {service.name for service in answer.list_services_response.service}


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_are_served(stubs: Stubs, version: str) -> None:
    assert set(SERVICES) <= reflected(stubs.channel, version)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_can_be_turned_off(version: str) -> None:
    with running(reflection=False) as server, grpc.insecure_channel(server.target) as channel:
        found = failure(lambda: reflected(channel, version))
    assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_pings_that_come_all_at_once_end_no_calls(own: tuple[Running, Stubs]) -> None:
    """So a server reads them that had to wait: a good client's connection must live on."""
    server, stubs = own
    host, _, port = server.target.rpartition(":")
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    empty_settings = b"\0\0\0\x04\0\0\0\0\0"
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
        for _ in range(4):
            connection.sendall(5 * ping)
            answered = 0
            while answered < 5:
                head = receive(connection, 9)
                receive(connection, int.from_bytes(head[:3], "big"))
                assert head[3] != 7, "GOAWAY"
                answered += head[3:5] == b"\x06\x01"
    assert stubs.generation.Generate(generate(stubs)).choices


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes; fails where the connection ends before."""
    found = b""
    while len(found) < size:
        found += (more := connection.recv(size - len(found)))
        assert more, "the connection has ended"
    return found


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    """However slow the machine: it drains for as long as what runs takes, which is short of the grace."""
    with (
        running(grace_seconds=SLOWEST_SECONDS) as server,
        grpc.insecure_channel(server.target) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        stubs = Stubs.on(channel)
        begun = stream(stubs, tokens=300)
        drained = pool.submit(server.on_loop, server.server.drain())
        eventually(lambda: health(stubs.channel) == NOT_SERVING, SLOWEST_SECONDS)
        found = failure(lambda: stubs.generation.Generate(generate(stubs)))
        assert not drained.done()
        messages = list(begun)
        drained.result(timeout=SLOWEST_SECONDS)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert found.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
    assert messages[-1].complete.outcomes[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert messages[-1].complete.usage.completion_tokens == 300


def test_after_the_grace_period_streams_are_ended() -> None:
    with running(grace_seconds=0.1) as server, grpc.insecure_channel(server.target) as channel:
        begun = stream(Stubs.on(channel))
        with ThreadPoolExecutor(1) as pool:
            drained = pool.submit(server.on_loop, server.server.drain())
            found = failure(lambda: begun)
            drained.result(timeout=20)
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_dies_all_in_flight_are_told(
    own: tuple[Running, Stubs], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, stubs = own
    begun = [stream(stubs), stream(stubs)]

    def broken(*_: object) -> None:
        raise RuntimeError("the device is gone")

    with ThreadPoolExecutor(1) as pool:
        death = pool.submit(server.on_loop, server.server.engine_death())
        monkeypatch.setattr(embedded(server.services).step, "decode", broken)
        failures: list[Failure] = [failure(lambda one=one: one) for one in begun]  # type: ignore[misc]
        assert isinstance(death.result(timeout=5), RuntimeError)
    for found in failures:
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING")
        assert "device" not in found.message
    late = failure(lambda: stubs.generation.Generate(generate(stubs)))
    assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_RESTARTING")
    server.on_loop(server.server.drain(died=True))


def test_a_reader_that_does_not_read_is_ended_and_slows_nobody() -> None:
    # A small window that does not grow: else the client's side of the connection takes megabytes unread.
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 4096)]
    with (
        running(unread_limit=64) as server,
        grpc.insecure_channel(server.target) as channel,
        grpc.insecure_channel(server.target, options=small) as narrow,
    ):
        stubs = Stubs.on(channel)
        alone = stubs.generation.Generate(generate(stubs, 200)).choices[0].token_ids
        slow = stream(Stubs.on(narrow), n=4, logprobs=20)
        beside = stubs.generation.Generate(generate(stubs, 200)).choices[0].token_ids
        eventually(server.is_idle, seconds=30)
        found = failure(lambda: slow)
    assert beside == alone
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
    assert "RetryInfo" not in found.details


def test_two_servers_do_not_share_a_port(served: Running) -> None:
    with pytest.raises(OSError, match=f"port {served.address.port} .* is taken"):
        Running(config(port=served.address.port))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate of localhost and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_tls_with_certificates_that_are_renewed(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    client_cert, client_key = certificate(tmp_path, "client")
    files = {"cert": cert, "key": key, "client_ca": client_cert}

    def call(authority: Path, known: bool = True) -> Any:
        own_files = (client_key.read_bytes(), client_cert.read_bytes()) if known else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.read_bytes(), *own_files)
        with grpc.secure_channel(f"localhost:{server.address.port}", credentials) as channel:
            return Stubs.on(channel).models.GetModel(model_pb2.GetModelRequest(), timeout=5)

    with running(tls=files, metrics_port=None) as server:
        assert server.address.metrics_port is None
        assert call(cert).id == "tiny"
        assert failure(lambda: call(cert, known=False)).code is grpc.StatusCode.UNAVAILABLE
        renewed, renewed_key = certificate(tmp_path, "two")
        key.write_bytes(renewed_key.read_bytes())
        cert.write_bytes(renewed.read_bytes())
        assert call(renewed).id == "tiny"
        cert.unlink()
        assert call(renewed).id == "tiny"
