"""The two faces of a server, gRPC and HTTP: how long callers of each wait between tokens."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import mean
from typing import Any

import grpc

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, prompt_pb2
from saegis_lab.bench.report import Ratio
from saegis_server.engine.api import Progress
from saegis_server.rpc.server.process import ServerProcess

#: Streams at once, all of which run, and the tokens of each.
STREAMS, PROMPT_TOKENS, ANSWER_TOKENS = 32, 16, 200
#: How many times as many rounds tell two hundredths apart.
ROUNDS = 4
_HEAD = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
#: Reads one stream; when each of its pieces came, in seconds.
Reader = Callable[[int], Awaitable[list[float]]]


def _prompt(number: int) -> list[int]:
    return [8 + number + place for place in range(PROMPT_TOKENS)]


async def over_grpc(target: str, number: int) -> list[float]:
    """When the pieces of a stream over gRPC came. Raises grpc.RpcError."""
    sampling = pb.SamplingParams(max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    request = pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=_prompt(number)), sampling=sampling)
    came = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[arg-type]
        async for message in stub.StreamGenerate(pb.StreamGenerateRequest(request=request)):
            if message.HasField("chunk"):
                came.append(time.perf_counter())
    return came


async def over_http(port: int, number: int) -> list[float]:
    """When the pieces of a stream over HTTP came, each parsed. Raises OSError, RuntimeError if it fails."""
    asked = {"prompt": _prompt(number), "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": True}
    # With the tokens' ids a piece comes for each of them, as over gRPC, also where it has no whole character.
    body = json.dumps(asked | {"stream": True, "return_token_ids": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{_HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
        status = await reader.readline()
        if not status.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a stream over HTTP ended with {status.decode(errors='replace').strip()}")
        came = []
        while (line := await reader.readline()) != b"data: [DONE]\n":
            if not line:
                raise RuntimeError("a stream over HTTP broke off")
            if line.startswith(b"data: ") and json.loads(line.removeprefix(b"data: ")).get("choices"):
                came.append(time.perf_counter())
        return came
    finally:
        writer.close()


def read_all(read: Reader) -> list[list[float]]:
    """Read STREAMS streams at once; of each, when its pieces came, in seconds."""

    async def every() -> list[list[float]]:
        return await asyncio.gather(*(read(number) for number in range(STREAMS)))

    return asyncio.run(every())


def between_tokens(read: Reader) -> float:
    """Milliseconds between two tokens of a stream, in the mean of STREAMS streams that are read at once.

    Of each stream it is the time from its first piece to its last, over the tokens between.
    """
    waits = [came[-1] - came[0] for came in read_all(read)]
    return 1000.0 * mean(waits) / (ANSWER_TOKENS - 1)


def both(target: str, port: int) -> tuple[Reader, Reader]:
    """Who reads the streams of a server over HTTP and who over gRPC, in this order."""
    return lambda number: over_http(port, number), lambda number: over_grpc(target, number)


def faces(
    name: str, rounds: int, progress: Progress, device: str = "cpu", further: Sequence[str] = ()
) -> list[Ratio]:
    """Serve the reference model, and measure both faces in turns on that server.

    name: of what is measured. further: more options of `saegis serve`. Raises ServerProcessError if
    the server does not start or stop.
    """
    options = ["--http-port", "0", "--max-num-seqs", str(STREAMS), "--device", device, *further]
    with ServerProcess(options, progress) as server:
        if (port := server.http_port) is None:
            raise RuntimeError("the server has no HTTP port")
        sides: list[tuple[Reader, list[float]]] = [(read, []) for read in both(server.target, port)]
        total = ROUNDS * rounds
        for number in range(total + 1):  # the first does not count
            progress(f"{STREAMS} streams over HTTP and gRPC", number, total + 1)
            for read, waits in sides if number % 2 else reversed(sides):
                wait = between_tokens(read)
                if number > 0:
                    waits.append(wait)
        server.stop()
    what = f"between tokens of {STREAMS} streams, HTTP"
    (_, ours), (_, theirs) = sides
    return [Ratio.of(name, what, "gRPC", ours, theirs, "≤ 1.1", unit="ms")]
