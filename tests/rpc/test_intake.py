"""Requests that are never sent and answers that are never read: what they may cost, over real sockets."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from saegis.v1 import generation_pb2 as pb
from saegis_server.rpc.auth.roles import ALL_ROLES
from saegis_server.rpc.server.intake import Intake
from tests.rpc import tiny
from tests.rpc.callers import bearer, by_token, identities
from tests.rpc.conftest import Stubs
from tests.rpc.half_open import HalfOpen
from tests.rpc.harness import Running, eventually, failure, running, told

GENERATE = "/saegis.v1.GenerationService/Generate"
LOAD = "/saegis.v1.ModelService/GetLoad"
HEALTH = "/grpc.health.v1.Health/Check"
MESSAGE = 3_900_000


def resident() -> int:
    """The bytes of memory that this process, server and all, holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that asks who calls."""
    folder = tmp_path_factory.mktemp("identities")
    with running(identities=identities(folder, {"one": (ALL_ROLES, by_token("secret"))})) as server:
        yield server


@pytest.mark.parametrize("path", [GENERATE, HEALTH])
def test_half_open_requests_without_a_token_hold_no_memory(guarded: Running, path: str) -> None:
    before = resident()
    client = HalfOpen(guarded.target, MESSAGE)
    try:
        for number in range(200):
            client.open(number, path)
        until = time.monotonic() + 2.0
        while time.monotonic() < until and len(client.reset) < 200:
            client.push()
        grown = resident() - before
        assert path == HEALTH or len(client.reset) == 200, "each is refused at its headers"
        with grpc.insecure_channel(guarded.target) as channel:
            call: Any = channel.unary_unary(LOAD)
            call(b"", metadata=bearer("secret"), timeout=5)
    finally:
        client.close()
    assert grown < 60 * 2**20, f"{grown / 2**20:.0f} MB"


def test_a_request_is_waited_for_so_long(guarded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> Iterator[bytes]:
        time.sleep(2.0)
        yield b""

    monkeypatch.setattr(intake_of(guarded), "_receive_seconds", 0.2)
    with grpc.insecure_channel(guarded.target) as channel:
        call: Any = channel.stream_unary(LOAD)
        found = failure(lambda: call(silent(), metadata=bearer("secret"), timeout=10))
    assert (found.code, found.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_NOT_SENT")


@pytest.mark.parametrize("messages", [0, 2])
def test_an_rpc_of_one_request_takes_one(guarded: Running, messages: int) -> None:
    with grpc.insecure_channel(guarded.target) as channel:
        call: Any = channel.stream_unary(LOAD)
        found = failure(lambda: call(iter([b""] * messages), metadata=bearer("secret"), timeout=10))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert ("more" if messages else "none") in found.message


def test_a_reader_that_never_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        running(max_num_seqs=4) as server,
        grpc.insecure_channel(
            server.target, options=[("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        ) as channel,
    ):
        monkeypatch.setattr(intake_of(server), "_write_seconds", 0.3)
        sampling = pb.SamplingParams(max_tokens=tiny.CONTEXT - 8, n=4, logprobs=20)
        message = pb.GenerateRequest(text="x", sampling=sampling)
        stream = Stubs.on(channel).generation.StreamGenerate(pb.StreamGenerateRequest(request=message))
        next(stream)
        eventually(lambda: intake_ended(server), 30.0)
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)
        found = told(raised.value)
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER")
        eventually(server.is_idle)


def intake_ended(server: Running) -> bool:
    return server.services.limiter.inside == 0


def intake_of(server: Running) -> Intake:
    found: Intake = server.server.intake
    return found
