"""The server's part of the command `saegis`."""


def add_commands() -> None:
    """Add the server's commands to `saegis`. The client finds this function as an entry point."""
    from saegis_server.engine.torch.compile_cache import keep_out

    keep_out()
    from saegis_server.cli import app  # noqa: F401 - importing it adds them
