"""The lab's part of the command `saegis`."""

from saegis_server.cli.main import add_commands as add_those_of_the_server


def add_commands() -> None:
    """Add the server's commands and the lab's to `saegis`: the entry point that the client finds them by."""
    add_those_of_the_server()
    from saegis_lab.cli import app  # noqa: F401 - importing it adds them
