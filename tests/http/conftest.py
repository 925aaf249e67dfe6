"""One tiny server with an HTTP port, and OpenAI's public client on it."""

from collections.abc import Iterator
from typing import Any

import grpc
import openai
import pytest

from saegis.v1 import generation_pb2_grpc
from tests.rpc.harness import Running, eventually, running

PRESET = """
edits:
  - operation: OPERATION_CLAMP
    feature: {sae: first, label: the red bridge}
    value: 6
"""


def url_of(server: Running) -> str:
    """Where a server answers over HTTP."""
    return f"http://127.0.0.1:{server.address.http_port}"


@pytest.fixture(scope="session")
def shared_http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that every test may use and none may change, whose answers are the same to the bit whatever
    else it answers."""
    preset = tmp_path_factory.mktemp("presets") / "bridge.yaml"
    preset.write_text(PRESET, encoding="utf-8")
    settings: dict[str, Any] = {"max_num_seqs": 4, "queue_limit": 64, "batch_invariant": True}
    with running(**settings, http_port=0, presets={"bridge": preset}) as server:
        yield server


@pytest.fixture
def served(shared_http: Running) -> Iterator[Running]:
    """The shared server, which must be idle again in the end."""
    yield shared_http
    eventually(shared_http.is_idle)


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which is not told that the server is another."""
    with openai.OpenAI(base_url=f"{url_of(served)}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def generation(served: Running) -> Iterator[generation_pb2_grpc.GenerationServiceStub]:
    """The same server over gRPC."""
    with grpc.insecure_channel(served.target) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)
