"""Two tenants, one hostile and flooding: what the other one asks is answered, hardly later than before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import grpc
import pytest

from saegis.v1 import generation_pb2, generation_pb2_grpc, prompt_pb2
from tests.e2e.serving import Serving
from tests.hostile.attack import SLOTS, attacked, bearer, is_idle
from tests.rpc.harness import eventually

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(300)]
ASKED, TOKENS, FLOODING = 24, 24, 24


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    """A server for both tenants."""
    with attacked(tmp_path) as server:
        yield server


def asked(n: int = 1, tokens: int = TOKENS) -> generation_pb2.GenerateRequest:
    """A request of so many answers."""
    chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="the river")])
    sampling = generation_pb2.SamplingParams(temperature=0.0, max_tokens=tokens, n=n, ignore_eos=True)
    return generation_pb2.GenerateRequest(chat=chat, sampling=sampling)


def timings(stub: generation_pb2_grpc.GenerationServiceStub) -> list[generation_pb2.Timings]:
    """Where the time of the quiet tenant's requests goes, made one after the other; all must succeed."""
    return [
        stub.Generate(asked(), metadata=bearer("quiet"), timeout=60.0).receipt.timings for _ in range(ASKED)
    ]


class Flood:
    """The hostile tenant, from many threads: whatever the server lets it have, while its block lasts."""

    def __init__(self, stub: generation_pb2_grpc.GenerationServiceStub) -> None:
        self.answered = self.refused = 0
        self._stub = stub
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(FLOODING)]

    def _run(self, number: int) -> None:
        request = asked(n=1 if number % 2 else SLOTS)
        while not self._over.is_set():
            try:
                self._stub.Generate(request, metadata=bearer("wild"), timeout=60.0)
            except grpc.RpcError:
                with self._lock:
                    self.refused += 1
                self._over.wait(0.02)
                continue
            with self._lock:
                self.answered += 1

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        eventually(lambda: self.answered + self.refused > FLOODING, 60.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_who_floods_delays_the_other_by_one_request_at_most(server: Serving) -> None:
    with grpc.insecure_channel(server.target) as ours, grpc.insecure_channel(server.target) as theirs:
        stub = generation_pb2_grpc.GenerationServiceStub(ours)
        timings(stub)  # the first requests of a process are slower
        alone = timings(stub)
        with Flood(generation_pb2_grpc.GenerationServiceStub(theirs)) as flood:
            before = flood.answered
            beside = timings(stub)
        assert flood.answered > before, "the flood was refused, not served"
    waited = median(each.queue_seconds for each in beside) - median(each.queue_seconds for each in alone)
    service = median(each.prefill_seconds + each.decode_seconds for each in beside)
    assert len(beside) == ASKED
    assert waited <= service, f"{waited:.3f} s longer, where a request takes {service:.3f} s"
    eventually(lambda: is_idle(server), 60.0)
