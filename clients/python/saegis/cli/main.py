"""The entry point `saegis`, which finds the server's commands and says what is missing."""

import sys
from importlib.metadata import entry_points

#: Where a distribution names a function that adds its commands.
GROUP = "saegis.commands"


def main() -> None:
    """Run the command line."""
    try:
        for added in entry_points(group=GROUP):
            added.load()()
        from saegis.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"error: {error.name} is not installed\nnext:  pip install 'saegis[cli]'")
    app()
