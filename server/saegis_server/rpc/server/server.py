"""The server, from configuration to exit: it listens, loads, opens, drains, and ends with its engine."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from saegis_server.engine.api import Progress
from saegis_server.rpc.server.address import ReadyFile, check_port
from saegis_server.rpc.server.config import Address, ServerConfig
from saegis_server.rpc.server.entrance import Entrance
from saegis_server.rpc.server.gate import Gate, Phase
from saegis_server.rpc.server.intake import Intake
from saegis_server.rpc.server.listener import SERVICES, Listener, Servicers, register
from saegis_server.rpc.server.loading import check_machine, load_services
from saegis_server.rpc.server.premises import Premises, prepare, warn_of_modes
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.server.watchdog import Watchdog
from saegis_server.rpc.services.shared import Services
from saegis_server.telemetry.http import MetricsEndpoint

T = TypeVar("T")
log = logging.getLogger("saegis.rpc")
#: How long finished answers may take to be sent after the engine has stopped.
LAST_WORDS_SECONDS = 2.0
#: How long a thread may hold Python's lock while another one waits for it.
SWITCH_SECONDS = 0.0005
_ENGINE_POLL_SECONDS = 0.1
_AUDIT_POLL_SECONDS = 0.25


class Face(Protocol):
    """A further way to call the server, beside gRPC, through the same entrance."""

    port: int

    async def start(self) -> None:
        """Listen. Raises OSError."""

    def add(self, services: Services, servicers: Servicers) -> None:
        """Answer with these services."""

    async def stop(self) -> None:
        """End what still runs, and free the address."""


#: Makes the face of a server; None for a configuration that asks for none.
MakeFace = Callable[[ServerConfig, Entrance, Intake], Face | None]


class EngineDiedError(RuntimeError):
    """The engine's thread ended by itself; the cause is this error's `__cause__`."""


class SaegisServer:
    """gRPC, health and metrics over an engine. For the event loop only.

    `start` makes it listen, `add` gives it its services, `open` lets it take requests, and `drain` ends it
    at any point.
    """

    def __init__(self, config: ServerConfig, premises: Premises, make_face: MakeFace | None = None) -> None:
        self.config = config
        self._make_face = make_face
        self._face: Face | None = None
        self.gate = Gate(SERVICES, premises.metrics)
        self.intake = Intake()
        self._premises = premises
        self._services: Services | None = None
        self._listener: Listener | None = None
        self._metrics: MetricsEndpoint | None = None
        self._watchdog: Watchdog | None = None
        self._following: asyncio.Future[None] | None = None
        self._drained = False

    async def start(self) -> Address:
        """Listen, with health NOT_SERVING and every RPC refused. Raises OSError if a port is taken."""
        config, metrics = self.config, self._premises.metrics
        await self.gate.set(Phase.STARTING)
        warn_of_modes(config)
        watchdog = self._watchdog = Watchdog(metrics.observe_stall, config.stall_seconds)
        if config.metrics_port is not None:
            check_port(config.metrics_host, config.metrics_port, "--metrics-port")
            self._metrics = MetricsEndpoint(
                metrics.registry,
                config.metrics_host,
                config.metrics_port,
                live=lambda: watchdog.is_live,
                ready=lambda: watchdog.is_live and self.gate.is_healthy,
            )
        entrance = Entrance.of(config, self._premises, self.gate)
        self._listener = Listener(config, entrance, self.intake)
        await self._listener.server.start()
        if (
            self._make_face is not None
            and (face := self._make_face(config, entrance, self.intake)) is not None
        ):
            await face.start()
            self._face = face
        if config.tls is None and not config.is_loopback:
            log.warning(
                "listening on %s without TLS: whoever is on the way reads prompts and tokens", config.host
            )
        return Address(
            host=config.host,
            port=self._listener.port,
            metrics_port=self._metrics.port if self._metrics else None,
            unix=config.unix,
            http_port=self._face.port if self._face else None,
        )

    def add(self, services: Services) -> None:
        """Register the services that answer requests, after `start`."""
        if self._listener is None:
            raise RuntimeError("the server listens nowhere: start it first")
        self._services = services
        servicers = register(self._listener.services, services)
        if self._face is not None:
            self._face.add(services, servicers)

    @property
    def services(self) -> Services:
        """The services that answer requests. Raises RuntimeError before `add`."""
        if self._services is None:
            raise RuntimeError("the server has no services yet")
        return self._services

    async def open(self) -> None:
        """Take requests: health becomes SERVING."""
        if self._services is not None and self._services.usage is not None:
            self._services.usage.start()
        await self.gate.set(Phase.SERVING)
        self._following = asyncio.ensure_future(self._follow_audit())

    async def _follow_audit(self) -> None:
        """Report NOT_SERVING while the audit log cannot be written, since then nothing is answered."""
        audit = self._premises.audit
        while audit is not None:
            await self.gate.set_unavailable("the audit log cannot be written" if audit.refuses else "")
            await asyncio.sleep(_AUDIT_POLL_SECONDS)

    async def engine_death(self) -> BaseException:
        """Wait until the engine's thread has died by itself; returns the cause."""
        while (error := self.services.engine.error) is None:  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(_ENGINE_POLL_SECONDS)
        return error

    async def drain(self, hurry: asyncio.Event | None = None, died: bool = False) -> None:
        """Stop: report it to health, let requests finish within the grace period, then end everything.

        `hurry` ends the grace period when it is set; `died` means that the engine has stopped already.
        """
        if self._drained:
            return
        self._drained = True
        if self._following is not None:
            self._following.cancel()
        await self.gate.set(Phase.ENGINE_RESTARTING if died else Phase.DRAINING)
        if not died and not await self._emptied(hurry):
            log.warning("the grace period is over; what still runs is ended")
        if (services := self._services) is not None:
            await asyncio.to_thread(services.engine.stop)
        await self.gate.emptied(LAST_WORDS_SECONDS)
        if self._face is not None:
            await self._face.stop()
        if self._listener is not None:
            await self._listener.stop(LAST_WORDS_SECONDS)
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)
        if services is not None:
            if services.usage is not None:
                await asyncio.to_thread(services.usage.close)
            if services.uploads is not None:
                services.uploads.close()
            await asyncio.to_thread(services.pictures.decoder.close)
            await asyncio.to_thread(services.governor.close)
        await asyncio.to_thread(self._premises.close)
        if self._watchdog is not None:
            await asyncio.to_thread(self._watchdog.close)

    async def _emptied(self, hurry: asyncio.Event | None) -> bool:
        """Whether all RPCs ended by themselves within the grace period, before `hurry` was set."""
        await _first_of(self.gate.emptied(self.config.grace_seconds), *([hurry.wait()] if hurry else ()))
        return self.gate.is_empty


async def serve(
    config: ServerConfig,
    progress: Progress,
    ready: Callable[[Address, Services], None] | None = None,
    make_face: MakeFace | None = None,
) -> None:
    """Listen, load, warm up, and serve until SIGTERM or SIGINT; then drain and return.

    Errors that do not depend on the model come before it is loaded.

    progress: called from other threads. ready: called on the loop once requests are taken, after the ready
    file is written. make_face: makes what answers beside gRPC. A second signal ends the grace period. Before
    the server is ready, signals act as usual.

    Raises what `check_machine`, `prepare`, `load_services` and the engine's warm-up raise, OSError if the
    address is taken or the ready file cannot be written, and EngineDiedError if the engine ended by itself.
    """
    check_machine(config)
    premises = prepare(config)
    server = SaegisServer(config, premises, make_face)
    ready_file = None
    try:
        address = await server.start()
        ready_file = ReadyFile(config.ready_file)
        services = await in_own_thread(lambda: load_services(config, premises, progress))
        server.add(services)
        await in_own_thread(lambda: services.engine.warm_up(progress))
        services.engine.start()
        _leave_loaded_objects_alone()
        _change_threads_often()
        with _Signals() as signals:
            await server.open()
            ready_file.write(address)
            if ready is not None:
                ready(address, services)
            cause = await _first_of(server.engine_death(), signals.first.wait())
            await server.drain(signals.second, died=cause is not None)
    except BaseException:
        await server.drain(died=True)
        raise
    finally:
        if ready_file is not None:
            ready_file.remove()
    if cause is not None:
        raise EngineDiedError(f"the engine ended by itself: {type(cause).__name__}") from cause


async def _first_of(awaited: Coroutine[Any, Any, T], *others: Coroutine[Any, Any, Any]) -> T | None:
    """Wait until one coroutine has ended, and cancel the others; the result of `awaited`, or None."""
    waits = [asyncio.ensure_future(coroutine) for coroutine in (awaited, *others)]
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for waiting in pending:
        waiting.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return None if waits[0].cancelled() else waits[0].result()


class _Signals:
    """SIGTERM and SIGINT as events, for the length of a block."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "_Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _come(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def _leave_loaded_objects_alone() -> None:
    """Exclude the loaded objects from garbage collection, which would stop every thread for 0.3 s."""
    gc.collect()
    gc.freeze()


def _change_threads_often() -> None:
    """Let no thread hold Python's lock for Python's 5 ms, which is about a step, while another waits for it.

    A step lets go of the lock some fifty times; beside a scrape it would wait for it each time.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
