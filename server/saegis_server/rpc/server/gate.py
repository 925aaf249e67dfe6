"""The gate: whether RPCs are admitted now, how many are inside, and the health status."""

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
    """What the server does now; the values are messages to callers that it does not admit."""

    STARTING = "the server is starting"
    SERVING = "the server serves"
    DRAINING = "the server is draining: it finishes what it has begun and takes nothing new"
    ENGINE_RESTARTING = "the engine has stopped; the server restarts"


class Gate:
    """Admits RPCs of the server's own services while it serves, and counts those inside.

    For the event loop only.
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
        """Enter a phase and update the health status."""
        self.phase = phase
        await self._report()

    async def set_unavailable(self, reason: str) -> None:
        """Report NOT_SERVING for a reason although the server serves; an empty reason takes that back.

        Requests are still admitted, and each fails with its own error.
        """
        if reason == self._unavailable:
            return
        self._unavailable = reason
        log.warning("the server is not healthy: %s" if reason else "the server is healthy again%s", reason)
        await self._report()

    async def _report(self) -> None:
        serving = self.is_healthy
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for service in self._services:
            await self.health.set(service, status)
        self._metrics.serving.set(1.0 if serving else 0.0)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count an RPC as inside for the length of the block. Raises NotServingError."""
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
        """Wait until no RPC is inside; returns False if that takes more than `seconds`."""
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True
