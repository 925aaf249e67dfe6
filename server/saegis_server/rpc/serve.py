"""Serving, from configuration to exit: load, listen, warm up, serve until a signal comes, drain."""

from collections.abc import Callable

from saegis_server.rpc.config import Address, ServerConfig

#: Told how far a stage of the start has come: its name, what is done, out of how much (0: not known).
Progress = Callable[[str, int, int], None]


async def serve(
    config: ServerConfig, progress: Progress, ready: Callable[[Address], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; `ready` is called once the server serves."""
    raise NotImplementedError
