"""What a token costs a server over HTTP and over gRPC, at 32 streams at once, measured in turns."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc
from tests.e2e.serving import Serving, serving, write_tiny_files

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900)]
STREAMS, TOKENS, ROUNDS, MOST = 32, 150, 5, 1.1
HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


async def over_grpc(server: Serving, number: int) -> int:
    """Read one stream over gRPC; how many pieces it had."""
    sampling = pb.SamplingParams(max_tokens=TOKENS, seed=number, ignore_eos=True)
    request = pb.GenerateRequest(text=f"the river {number}", sampling=sampling)
    async with grpc.aio.insecure_channel(server.target) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[arg-type]
        stream = stub.StreamGenerate(pb.StreamGenerateRequest(request=request))
        return sum([1 async for message in stream if message.HasField("chunk")])


async def over_http(server: Serving, number: int) -> int:
    """Read one stream over HTTP; how many pieces it had."""
    asked = {"prompt": f"the river {number}", "max_tokens": TOKENS, "seed": number, "ignore_eos": True}
    body = json.dumps(asked | {"stream": True, "return_token_ids": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.ready["http_port"])
    writer.write(f"{HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    pieces = 0
    while (line := await reader.readline()) != b"data: [DONE]\n":
        pieces += line.startswith(b"data: ")
    writer.close()
    return pieces


def cpu_seconds(server: Serving) -> float:
    """What a server's process has computed so far. Unlike waiting, it hardly depends on what else runs."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(server: Serving, ask: Callable[[Serving, int], Awaitable[int]]) -> float:
    """The seconds of the server's own that all streams took."""

    async def everyone() -> list[int]:
        return list(await asyncio.gather(*(ask(server, number) for number in range(STREAMS))))

    before = cpu_seconds(server)
    pieces = asyncio.run(everyone())
    assert min(pieces) > TOKENS // 2, "what was told in few pieces measures little"
    return cpu_seconds(server) - before


def test_a_token_costs_hardly_more_over_http(tmp_path: Path) -> None:
    files = write_tiny_files(tmp_path)
    options = ("--http-port", "0", "--max-num-seqs", str(STREAMS), "--compile", "never")
    with serving(tmp_path / "stderr", *files.options, *options) as server:
        for ask in (over_grpc, over_http):
            measured(server, ask)
        rounds = [(measured(server, over_grpc), measured(server, over_http)) for _ in range(ROUNDS)]
        server.terminate()
        assert server.wait() == 0
    assert statistics.median(http / other for other, http in rounds) <= MOST, rounds
