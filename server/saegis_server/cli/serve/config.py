"""The commands `saegis config check | show`: whether settings can be served with, and which ones hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import console, fail, notes, print_json
from saegis_server.cli.serve.configuration import configuration
from saegis_server.cli.serve.options import ServerOptions
from saegis_server.cli.serve.settings import Config, SettingsCommand, effective

app = typer.Typer(no_args_is_help=True, help="Check and show the settings of a server.")

CHECK_EPILOG = """
[bold]Examples[/bold]

saegis config check --config server.yaml

saegis config check --config server.yaml --host 0.0.0.0

It takes the options of saegis serve, and the environment counts. The files that the settings name are read
too: SAEs, certificates, identities, policies and keys. The model is not loaded, and nothing is written.
"""
SHOW_EPILOG = """
[bold]Examples[/bold]

saegis config show --config server.yaml

saegis config show --config server.yaml --port 50060 --json

It takes the options of saegis serve. No setting is a secret: secrets lie in the files that settings name,
and are not shown.
"""


@app.command(epilog=CHECK_EPILOG, cls=SettingsCommand)
@options.grouped
def check(
    *,
    server: ServerOptions,
    config: Config = None,
    json: options.Json = False,
) -> None:
    """Check settings, and the files that they name, without serving."""
    checked = configuration(server)
    from saegis_server.cli.serve.start_errors import start_failed
    from saegis_server.rpc.server.loading import check_machine
    from saegis_server.rpc.server.premises import check_files, open_files

    try:
        check_machine(checked)
        check_files(checked)
    except Exception as error:
        if (failure := start_failed(error)) is None:
            raise
        raise fail(*failure) from error
    warnings = list(open_files(checked))
    if json:
        print_json({"fits": True, "warnings": warnings})
        return
    for warning in warnings:
        notes().print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    console().print(Text("a server can start with these settings", style="bold green"))


@app.command(epilog=SHOW_EPILOG, cls=SettingsCommand)
@options.grouped
def show(
    ctx: typer.Context,
    *,
    server: ServerOptions,
    config: Config = None,
    json: options.Json = False,
) -> None:
    """Show the value of every setting, and where it comes from."""
    configuration(server)
    settings = list(effective(ctx))
    if json:
        print_json({each.key: {"value": _plain(each.value), "source": each.source} for each in settings})
        return
    table = Table("setting", "value", "from")
    for each in settings:
        style = "dim" if each.source == "default" else ""
        table.add_row(Text(each.key), Text(_shown(each.value)), Text(each.source), style=style)
    console().print(table)


def _plain(value: object) -> Any:
    """A value in JSON form."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _shown(value: object) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
