"""Serving, from configuration to exit: listen, load, warm up, serve until a signal comes, drain."""

import asyncio
import gc
import signal
from collections.abc import Callable

from saegis_server.engine.api import Progress
from saegis_server.rpc.server.config import Address, ServerConfig
from saegis_server.rpc.server.loading import check_machine, load_services
from saegis_server.rpc.server.premises import prepare
from saegis_server.rpc.server.ready_file import ReadyFile
from saegis_server.rpc.server.server import EngineDiedError, SaegisServer
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.shared import Services


async def serve(
    config: ServerConfig, progress: Progress, ready: Callable[[Address, Services], None] | None = None
) -> None:
    """Listen, load, warm up, and serve until SIGTERM or SIGINT; then drain and return.

    Whatever can be known to be wrong without the model is found before it is loaded.

    progress: called from other threads. ready: called on the loop once requests are taken, after the ready
    file is written. A second signal ends the grace period. Before the server is ready signals act as usual.

    Raises what `check_machine`, `prepare`, `load_services` and the engine's warm-up do, OSError for an
    address that is taken or a ready file that cannot be written, EngineDiedError if the engine ended by
    itself.
    """
    check_machine(config)
    premises = prepare(config)
    server = SaegisServer(config, premises)
    ready_file = None
    try:
        address = await server.start()
        ready_file = ReadyFile(config.ready_file)
        services = await in_own_thread(lambda: load_services(config, premises, progress))
        server.add(services)
        await in_own_thread(lambda: services.engine.warm_up(progress))
        services.engine.start()
        _leave_loaded_objects_alone()
        with _Signals() as signals:
            await server.open()
            ready_file.write(address)
            if ready is not None:
                ready(address, services)
            cause = await _first_of(signals.first, server)
            await server.drain(signals.second, died=cause is not None)
    except BaseException:
        await server.drain(died=True)
        raise
    finally:
        if ready_file is not None:
            ready_file.remove()
    if cause is not None:
        raise EngineDiedError(f"the engine ended by itself: {type(cause).__name__}") from cause


async def _first_of(stop: asyncio.Event, server: SaegisServer) -> BaseException | None:
    """Wait for a signal or for the engine's death; what it died of, or None."""
    death = asyncio.ensure_future(server.engine_death())
    stopped = asyncio.ensure_future(stop.wait())
    done, pending = await asyncio.wait((death, stopped), return_when=asyncio.FIRST_COMPLETED)
    for waiting in pending:
        waiting.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return death.result() if death in done else None


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
    """Keep the garbage collector off what was loaded: going through it stops every thread for 0.3 s."""
    gc.collect()
    gc.freeze()
