"""The gate: whether RPCs are let in now, how many are inside, and what health tells of it."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_health.v1.health import aio as health_aio  # type: ignore[import-untyped]

from saegis_server.rpc.wire.problems import NotServingError
from saegis_server.telemetry.metrics import Metrics

log = logging.getLogger("saegis.rpc")


class Phase(Enum):
    """What the server does now, and what it tells callers that it does not let in."""

    STARTING = "the server is starting"
    SERVING = "the server serves"
    DRAINING = "the server is draining: it finishes what it has begun and takes nothing new"
    ENGINE_RESTARTING = "the engine has stopped; the server restarts"


class Gate:
    """Lets RPCs of the server's own services in while it serves, and counts those inside.

    To be used on the event loop alone.
    """

    def __init__(self, services: tuple[str, ...], metrics: Metrics, retry_seconds: float = 1.0) -> None:
        self.phase = Phase.STARTING
        self.health = health_aio.HealthServicer()
        self._services = ("", *services)
        self._metrics = metrics
        self._retry_seconds = retry_seconds
        self._unavailable = ""
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def set(self, phase: Phase) -> None:
        """Go on to a phase. Health tells it before anything else happens."""
        self.phase = phase
        await self._tell()

    async def set_unavailable(self, reason: str) -> None:
        """Tell that the server can answer nobody though it serves, and why; an empty reason takes it back.

        Requests are still let in: each is told by itself what keeps it from being answered.
        """
        if reason == self._unavailable:
            return
        self._unavailable = reason
        log.warning("the server is not healthy: %s" if reason else "the server is healthy again%s", reason)
        await self._tell()

    async def _tell(self) -> None:
        serving = self.phase is Phase.SERVING and not self._unavailable
        told = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in self._services:
            await self.health.set(service, told)
        self._metrics.serving.set(1.0 if serving else 0.0)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside for the length of one RPC. Raises NotServingError."""
        if self.phase is not Phase.SERVING:
            raise NotServingError(self.phase.name, self.phase.value, self._retry_seconds)
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    @property
    def is_healthy(self) -> bool:
        """Whether the server takes requests and can answer them. Any thread may ask."""
        return self.phase is Phase.SERVING and not self._unavailable

    @property
    def is_empty(self) -> bool:
        """Whether no RPC is inside."""
        return self._inside == 0

    async def emptied(self, seconds: float) -> bool:
        """Wait until no RPC is inside; False if so many seconds pass before."""
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True
