"""A real server on free ports in a thread of the test's process, and calls that keep a failure's details."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any, TypeVar, cast

import grpc
import torch
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.http.listener import make_face
from saegis_server.rpc.server.config import Address, ServerConfig
from saegis_server.rpc.server.loading import services
from saegis_server.rpc.server.premises import Premises, prepare
from saegis_server.rpc.server.server import SaegisServer
from saegis_server.rpc.services.shared import Services
from saegis_server.rpc.wire.errors import DETAILS_KEY
from saegis_server.rpc.wire.prompts import PromptReader
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity
from tests.rpc import tiny

T = TypeVar("T")
DETAILS: tuple[type[Message], ...] = tuple(
    getattr(error_details_pb2, name)
    for name in (
        "ErrorInfo",
        "RequestInfo",
        "BadRequest",
        "RetryInfo",
        "QuotaFailure",
        "ResourceInfo",
        "PreconditionFailure",
    )
)


def config(**settings: Any) -> ServerConfig:
    """A configuration for free ports of the loopback."""
    defaults = {"model": "tiny", "port": 0, "metrics_port": 0, "compile": "never", "grace_seconds": 20.0}
    # What is sampled comes between the steps that tests look at.
    defaults["sample_seconds"] = 0.0
    return ServerConfig.model_validate({**defaults, **settings})


def tiny_services(settings: ServerConfig, premises: Premises) -> Services:
    """An engine over the tiny model, not started, with everything around it."""
    sites = {site: frozenset((Norm.NONE,)) for site in tiny.SITES}
    model, tokenizer = tiny.model(), tiny.tokenizer()
    loaded = LoadedModel("tiny", model, tokenizer, "", (), tiny.CONTEXT)
    capacity = Capacity(edits=8, rules=2, bans=8, watches=8)
    slots = Slots(model, tuple(sites), max(2, settings.max_num_seqs or 16), tiny.CONTEXT, capacity)
    prompts = PromptReader(tokenizer, tiny.VOCABULARY)
    entries = tiny.catalog().entries
    keeps = [entry.site for entry in entries] if settings.usage_every else []
    step = Step(model, sites, slots, compiled=False, keeps=keeps)
    return services(settings, premises, loaded, step, prompts, entries)


def embedded(made: Services) -> TorchEngine:
    """The engine of a server, to look into."""
    assert isinstance(made.engine, TorchEngine)
    return made.engine


#: What a server serves, not started, as its configuration says.
Make = Callable[[ServerConfig, Premises], Services]


class Running:
    """A server in a thread with an event loop of its own."""

    def __init__(self, settings: ServerConfig, unread_limit: int = 4096, make: Make = tiny_services) -> None:
        self.config, self._services = settings, make
        self.loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()
        self.server = self.on_loop(self._make(unread_limit))
        try:
            self.address: Address = self.on_loop(self.server.start())
            self.server.add(self.services)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> str:
        return self.address.target

    def open(self) -> None:
        """Start the engine and take requests."""
        self.services.engine.start()
        self.on_loop(self.server.open())

    def close(self) -> None:
        """Drain and end the thread."""
        self.on_loop(self.server.drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop, which may take as long as its grace period and a minute."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60 + self.config.grace_seconds)

    def is_idle(self) -> bool:
        """Whether the engine holds nothing."""
        load = self.services.engine.stats()
        return load.running == load.waiting == load.used_tokens == 0

    async def _make(self, unread_limit: int) -> SaegisServer:
        premises = prepare(self.config)
        try:
            made = self._services(self.config, premises)
        except BaseException:
            premises.close()
            raise
        self.services = replace(made, unread_limit=unread_limit)
        return SaegisServer(self.config, premises, make_face)

    def _run(self) -> None:
        torch.set_num_threads(1)
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


@contextmanager
def running(unread_limit: int = 4096, make: Make = tiny_services, **settings: Any) -> Iterator[Running]:
    """A server that takes requests, closed at the end; `make`: what it serves."""
    server = Running(config(**settings), unread_limit, make)
    try:
        server.open()
        yield server
    finally:
        server.close()


@dataclass(frozen=True)
class Failure:
    """What a failed call told."""

    code: grpc.StatusCode
    message: str
    trailers: dict[str, str | bytes]
    details: dict[str, Any]

    @property
    def reason(self) -> str:
        return str(self.details["ErrorInfo"].reason)

    @property
    def fields(self) -> list[str]:
        return [violation.field for violation in self.details["BadRequest"].field_violations]


def failure(call: Callable[[], object]) -> Failure:
    """Make a call, or read a stream to its end, that must fail."""
    try:
        answer = call()
        if isinstance(answer, grpc.Call) and hasattr(answer, "__next__"):
            deque(cast(Iterator[object], answer), maxlen=0)
    except grpc.RpcError as error:
        return told(error)
    raise AssertionError("the call did not fail")


def told(error: Any) -> Failure:
    """The details of an error of grpc."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get(DETAILS_KEY, b""))
    found = {}
    for packed in status.details:
        for kind in DETAILS:
            message = kind()
            if packed.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    if status.details:
        assert (status.code, status.message) == (error.code().value[0], error.details())
    return Failure(error.code(), error.details() or "", trailers, found)


def send_bytes(channel: grpc.Channel, method: str, data: bytes, streams: bool = False) -> Failure:
    """Call a method with bytes as they are; the call must fail."""
    make: Any = channel.unary_stream if streams else channel.unary_unary
    return failure(lambda: make(method)(data))


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it does not hold in time"
        time.sleep(0.005)
