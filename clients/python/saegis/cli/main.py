"""The entry point `saegis`, which adds the commands of installed distributions."""

import sys
from importlib.metadata import entry_points

#: The entry point group in which a distribution names the function that adds its commands.
GROUP = "saegis.commands"


def main() -> None:
    """Run the command line."""
    try:
        for entry_point in entry_points(group=GROUP):
            entry_point.load()()
        from saegis.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"error: {error.name} is not installed\nnext:  pip install 'saegis[cli]'")
    app()
