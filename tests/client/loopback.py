"""A small gRPC server on a loopback socket: it gives prepared answers and records what it was sent."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from saegis.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    direction_pb2,
    direction_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)

SERVICES = (
    (generation_pb2.DESCRIPTOR.services_by_name["GenerationService"], generation_pb2_grpc),
    (feature_pb2.DESCRIPTOR.services_by_name["FeatureService"], feature_pb2_grpc),
    (model_pb2.DESCRIPTOR.services_by_name["ModelService"], model_pb2_grpc),
    (policy_pb2.DESCRIPTOR.services_by_name["PolicyService"], policy_pb2_grpc),
    (direction_pb2.DESCRIPTOR.services_by_name["DirectionService"], direction_pb2_grpc),
    (audit_pb2.DESCRIPTOR.services_by_name["AuditService"], audit_pb2_grpc),
)


@dataclass
class Failure:
    """A status with which a call fails."""

    code: grpc.StatusCode
    message: str = "it failed"
    details: Sequence[Message] = ()
    trailers: Sequence[tuple[str, str]] = ()


@dataclass
class Received:
    """One call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, str]
    time_remaining: float | None
    at: float


@dataclass
class Loopback:
    """What the server will answer, and what it was asked."""

    target: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    """For each method its answer; for StreamGenerate a list of them."""
    failures: dict[str, list[Failure]] = field(default_factory=dict)
    """For each method the failures of its next calls, first to last."""
    received: list[Received] = field(default_factory=list)
    pause_seconds: float = 0.0
    """How long a unary call takes, and how long a stream waits before each message but the first."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once a call is over for the server, which for a call that would take long means cancelled."""
    readiness: health.HealthServicer = field(default_factory=health.HealthServicer)

    def begin(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        """Record a call, then fail it if a failure is prepared."""
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        context.add_callback(self.ended.set)
        remaining = context.time_remaining()
        self.received.append(Received(method, request, metadata, remaining, time.monotonic()))
        if self.failures.get(method):
            fail(context, self.failures[method].pop(0))

    def wait(self, context: grpc.ServicerContext) -> None:
        """Pause, at most until the caller has gone away."""
        until = time.monotonic() + self.pause_seconds
        while context.is_active() and time.monotonic() < until:
            time.sleep(0.005)


def fail(context: grpc.ServicerContext, failure: Failure) -> None:
    """End a call with a status, its details packed as google.rpc prescribes."""
    trailers: list[tuple[str, str | bytes]] = [*failure.trailers]
    if failure.details:
        status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
        for detail in failure.details:
            status.details.add().Pack(detail)
        trailers.append(("grpc-status-details-bin", status.SerializeToString()))
    context.set_trailing_metadata(tuple(trailers))
    context.abort(failure.code, failure.message)


def unary(loopback: Loopback, method: str) -> Callable[..., Any]:
    """The handler of a method with one answer."""

    def handle(_: object, request: Any, context: grpc.ServicerContext) -> Any:
        loopback.begin(method, request, context)
        loopback.wait(context)
        return loopback.answers[method]

    return handle


def streaming(loopback: Loopback, method: str) -> Callable[..., Any]:
    """The handler of a method that streams its answers."""

    def handle(_: object, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        loopback.begin(method, request, context)
        for number, message in enumerate(loopback.answers[method]):
            if number > 0:
                loopback.wait(context)
            if isinstance(message, Failure):
                fail(context, message)
            yield message

    return handle


def start(
    loopback: Loopback,
    credentials: grpc.ServerCredentials | None = None,
    *,
    port: int = 0,
    with_health: bool = True,
) -> grpc.Server:
    """Start a server that answers as `loopback` says; writes the target into it."""
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    for service, module in SERVICES:
        handlers = {
            method.name: (streaming if method.server_streaming else unary)(loopback, method.name)
            for method in service.methods
        }
        servicer = type(service.name, (getattr(module, f"{service.name}Servicer"),), handlers)()
        getattr(module, f"add_{service.name}Servicer_to_server")(servicer, server)
    if with_health:
        health_pb2_grpc.add_HealthServicer_to_server(loopback.readiness, server)
    loopback.readiness.set("saegis.v1.GenerationService", health_pb2.HealthCheckResponse.SERVING)
    if credentials is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    loopback.target = f"127.0.0.1:{port}"
    server.start()
    return server
