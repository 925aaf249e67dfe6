"""The entry point `saegis`, which says what is missing where only the client is installed."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from saegis_server.engine.torch.compile_cache import keep_out

        keep_out()
        from saegis_server.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"error: {error.name} is not installed\nnext:  pip install 'saegis[server]'")
    app()
