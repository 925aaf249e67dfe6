"""One tiny server for the tests that leave it as they found it, and the raw stubs to call it."""

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from saegis.v1 import feature_pb2_grpc, generation_pb2_grpc, model_pb2_grpc
from tests.rpc.harness import Running, eventually, running


@dataclass(frozen=True)
class Stubs:
    """Raw stubs on one channel."""

    channel: grpc.Channel
    generation: generation_pb2_grpc.GenerationServiceStub
    features: feature_pb2_grpc.FeatureServiceStub
    models: model_pb2_grpc.ModelServiceStub

    @classmethod
    def on(cls, channel: grpc.Channel) -> "Stubs":
        return cls(
            channel,
            generation_pb2_grpc.GenerationServiceStub(channel),
            feature_pb2_grpc.FeatureServiceStub(channel),
            model_pb2_grpc.ModelServiceStub(channel),
        )


@pytest.fixture(scope="session")
def shared() -> Iterator[Running]:
    """A server that every test may use and none may change."""
    with running(max_num_seqs=4, queue_limit=64) as server:
        yield server


@pytest.fixture
def served(shared: Running) -> Iterator[Running]:
    """The shared server, which must be idle again in the end."""
    yield shared
    eventually(shared.is_idle)


@pytest.fixture
def stubs(served: Running) -> Iterator[Stubs]:
    """Stubs on the shared server."""
    with grpc.insecure_channel(served.target) as channel:
        yield Stubs.on(channel)
