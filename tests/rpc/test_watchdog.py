"""Whether the server lives, is ready and is healthy: when its loop is stuck, when nothing can be recorded."""

import asyncio
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc
from saegis_server.policy.store.history import Standing
from saegis_server.rpc.auth.roles import ALL_ROLES
from saegis_server.rpc.server.watchdog import STUCK_STATUS
from saegis_server.telemetry.http import MOST_CONNECTIONS
from tests.audit.test_failures import FailingDisk
from tests.rpc.callers import by_token, identities
from tests.rpc.harness import Running, eventually, failure, running


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with an audit log whose loop may not be stuck for long."""
    directory = tmp_path_factory.mktemp("audit") / "log"
    with running(stall_seconds=0.3, audit={"directory": directory}) as server:
        yield server


def status(server: Running, path: str) -> int:
    """What the metrics port says."""
    try:
        url = f"http://127.0.0.1:{server.address.metrics_port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def healthy(server: Running) -> bool:
    with grpc.insecure_channel(server.target) as channel:
        told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return bool(told.status == health_pb2.HealthCheckResponse.SERVING)


def sample(server: Running, name: str) -> float:
    found = server.services.metrics.registry.get_sample_value(name)
    assert found is not None
    return found


def test_a_stuck_loop_is_not_live_and_is_measured(watched: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert (status(watched, "/healthz"), status(watched, "/readyz")) == (200, 200)
    stuck = threading.Event()

    async def block() -> None:
        stuck.set()
        time.sleep(0.8)  # noqa: ASYNC251 - what must not happen

    blocking = asyncio.run_coroutine_threadsafe(block(), watched.loop)
    stuck.wait()
    with caplog.at_level(logging.ERROR):
        time.sleep(0.5)
        assert (status(watched, "/healthz"), status(watched, "/readyz")) == (503, 503)
    blocking.result()
    eventually(lambda: status(watched, "/healthz") == 200)
    assert 0.6 < sample(watched, "saegis_event_loop_stall_seconds_max") < 3.0
    (told,) = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert "in block" in told, "where it is stuck"


STUCK = """
import asyncio, time
from saegis_server.rpc.server.watchdog import Watchdog

async def main():
    Watchdog(lambda seconds: None, 0.1)
    time.sleep(30)

asyncio.run(main())
"""


def test_a_process_whose_loop_stays_stuck_ends() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, check=False)
    assert (done.returncode, time.monotonic() - began < 20) == (STUCK_STATUS, True)
    assert "in main" in done.stderr


def test_health_follows_the_audit_log_and_comes_back(watched: Running) -> None:
    audit = watched.services.governor.audit
    assert audit is not None
    disk = FailingDisk()
    audit._writer._file._disk = disk
    assert healthy(watched)
    disk.failing = "write"
    with grpc.insecure_channel(watched.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        message = pb.GenerateRequest(text="the river", sampling=pb.SamplingParams(max_tokens=1))
        assert failure(lambda: stub.Generate(message)).reason == "AUDIT_UNAVAILABLE"
        eventually(lambda: not healthy(watched))
        assert (status(watched, "/readyz"), status(watched, "/healthz")) == (503, 200)
        assert (sample(watched, "saegis_audit_available"), sample(watched, "saegis_serving")) == (0.0, 0.0)
        disk.failing = ""
        eventually(lambda: healthy(watched))
        stub.Generate(message)
    assert (sample(watched, "saegis_audit_available"), sample(watched, "saegis_serving")) == (1.0, 1.0)


def test_idle_connections_to_the_metrics_port_hold_no_threads_and_keep_nobody_out(watched: Running) -> None:
    before = threading.active_count()
    address = ("127.0.0.1", watched.address.metrics_port or 0)
    idle = [socket.create_connection(address) for _ in range(213)]
    try:
        assert status(watched, "/metrics") == 200
        assert threading.active_count() <= before + 2
        endpoint = watched.server._metrics
        assert endpoint is not None
        assert len(endpoint._connections) <= MOST_CONNECTIONS
    finally:
        for each in idle:
            each.close()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /secret HTTP/1.1\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/x HTTP/1.1\r\n\r\n", b"404"),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"200"),
        (b"GET /" + b"x" * 20_000, b"400"),
    ],
)
def test_the_metrics_port_answers_what_it_knows(watched: Running, sent: bytes, told: bytes) -> None:
    with socket.create_connection(("127.0.0.1", watched.address.metrics_port or 0), timeout=5) as connection:
        connection.sendall(sent)
        assert connection.recv(64).split()[1] == told


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_files_that_others_can_read_or_change_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "audit.key"
    key.write_text("k" * 64)
    key.chmod(0o640)
    known = identities(tmp_path, {"one": (ALL_ROLES, by_token("secret"))})
    known.chmod(0o666)
    settings = {"directory": tmp_path / "log", "key_file": key}
    with caplog.at_level(logging.WARNING), running(identities=known, audit=settings):
        pass
    told = [record.getMessage() for record in caplog.records if "chmod" in record.getMessage()]
    assert [f"chmod 600 {key}" in told[0], f"chmod go-w {known}" in told[1], len(told)] == [True, True, 2]
    caplog.clear()
    key.chmod(stat.S_IRUSR)
    known.chmod(0o644)
    with caplog.at_level(logging.WARNING), running(identities=known, audit=settings):
        pass
    assert not [record for record in caplog.records if "chmod" in record.getMessage()]


def test_a_state_that_is_nested_without_end_is_told_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="too deep"):
        Standing.from_json(b'{"format": ' + b"[" * 200_000)


def test_a_long_answer_does_not_hold_up_the_loop(watched: Running) -> None:
    metrics = watched.services.metrics
    sampling = pb.SamplingParams(n=64, max_tokens=60, logprobs=20, ignore_eos=True)
    with grpc.insecure_channel(watched.target) as channel:
        metrics._largest = 0.0
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        answer = stub.Generate(pb.GenerateRequest(text="the river", sampling=sampling))
    assert sum(len(choice.token_ids) for choice in answer.choices) == 64 * 60
    assert metrics._largest < 0.25
