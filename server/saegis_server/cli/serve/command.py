"""The command `saegis serve`: load a model and its SAEs, and serve them until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import FAILURE, fail, notes, own_command, print_json_line
from saegis_server.cli.serve.configuration import configuration
from saegis_server.cli.serve.options import LogFormat, ServerOptions
from saegis_server.cli.serve.settings import Config
from saegis_server.cli.stages import StageDisplay, stage_display
from saegis_server.rpc.server import logs

if TYPE_CHECKING:
    from saegis_server.policy.store.history import Revision
    from saegis_server.rpc.server.config import Address, ServerConfig
    from saegis_server.rpc.services.shared import Services

EPILOG = """
[bold]Examples[/bold]

saegis serve

saegis serve --model ./my-model --sae ./my-sae --site blocks.12.hook_resid_post

saegis serve --model owner/model --sae owner/sae/folder --dtype bfloat16

saegis serve --policy ./my-policy --policy-state ./policy-state --policy-key operator.key.pub

saegis serve --unix /run/saegis/saegis.sock

saegis serve --host 0.0.0.0 --tls-cert server.pem --tls-key server.key --identities identities.yaml

saegis serve --config server.yaml --port 50060

[bold]Settings[/bold]

Every option is a setting. A flag wins; else its environment variable counts (--max-num-seqs is
SAEGIS_MAX_NUM_SEQS; several values are separated by spaces), else its key in the file of --config
(max-num-seqs: 32), else its default. saegis config show tells what holds, and why.

[bold]Models and SAEs[/bold]

Each is a directory or a hub id. A model is any Transformers causal language model in safetensors. An SAE may
also be named as SAELens (release/sae_id) or Neuronpedia (model/source) names it; saegis sae --help says which
files are read. Without --model the reference model is served, which ships with the package. The n-th --site
belongs to the n-th --sae; without --site an SAE goes where its file says. Further sites may be steered with
directions.

[bold]Limits[/bold]

--limit takes principal.NAME and tenant.NAME with requests (at once), tokens_per_minute and bytes_per_minute,
and requests and held_bytes of all callers together. Callers beyond a limit are told when to try again.

SIGTERM and Ctrl-C let running requests finish within --grace seconds.
"""
log = logging.getLogger("saegis.serve")


@options.grouped
def serve(
    *,
    server: ServerOptions,
    config: Config = None,
    json: options.Json = False,
) -> None:
    """Serve a model with its SAEs over gRPC.

    Shows each stage of the start: loading, checking the SAEs, compiling, proving that steering works.
    With --json the stages and the address are JSON lines on standard output.
    """
    process = server.process
    as_log = process.log_format is LogFormat.JSON
    logs.set_up(process.log_level, as_log)
    settings = configuration(server)
    with stage_display(json, log if as_log else None) as display:
        # Importing torch takes seconds, so it is the first stage.
        display("loading the libraries", 0, 0)
        _run(settings, display, json, as_log)
    if json:
        print_json_line({"event": "stopped"})
    elif not as_log:
        notes().print("stopped")
    log.info("stopped")


def _run(config: ServerConfig, display: StageDisplay, json: bool, as_log: bool) -> None:
    """Serve until a signal comes; a known error ends the command with a message, or a record of the log."""
    from transformers.utils import logging as transformers_logging

    from saegis_server.cli.serve.start_errors import start_failed
    from saegis_server.http.listener import make_face
    from saegis_server.rpc.server.server import serve as serve_until_signalled

    # A second progress bar would tear the display.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if as_log:
        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()

    def ready(address: Address, services: Services) -> None:
        display.close()
        event = _event(address, services, config, display)
        log.info("serving on %s", address.target, extra=logs.with_fields(**event))
        if json:
            print_json_line(event)
        elif not as_log:
            _show(address, services, config)

    try:
        asyncio.run(serve_until_signalled(config, display, ready, make_face))
    except Exception as error:
        display.close()
        failure = start_failed(error)
        if as_log:
            message, advice = failure or ("the server ended with a defect", "report it")
            log.critical(message, exc_info=failure is None, extra=logs.with_fields(next=advice))
            raise typer.Exit(FAILURE) from error
        if failure is None:
            raise
        raise fail(*failure) from error


def _in_force(services: Services) -> list[Revision]:
    """The policies in force."""
    from saegis_server.policy.decide.disclosure import OPERATOR

    store = services.policies
    return [] if store is None else [policy.state.active for policy in store.all_for(OPERATOR)]


def _event(
    address: Address, services: Services, config: ServerConfig, display: StageDisplay
) -> dict[str, object]:
    """That the server serves, where, and under which policies, for programs."""
    return {
        "event": "ready",
        "target": address.target,
        "metrics_port": address.metrics_port,
        "http_port": address.http_port,
        "pid": os.getpid(),
        "max_num_seqs": services.engine.stats().max_running,
        "max_model_len": services.engine.max_length,
        "policies": [
            {"name": policy.name, "revision": policy.revision, "serial": policy.serial}
            for policy in _in_force(services)
        ],
        "audit": str(config.audit.directory.absolute()) if config.audit else None,
        "seconds": {stage: round(seconds, 3) for stage, seconds in display.seconds.items()},
    }


def _show(address: Address, services: Services, config: ServerConfig) -> None:
    """Print the same for people, and what to do next."""
    everybody = "every program of this user" if config.unix else "every program of this machine"
    rows = [("SAE", f"{source.id or source.path} {source.site or ''}") for source in config.saes]
    engine = services.engine
    rows.append(("at once", f"{engine.stats().max_running} sequences of {engine.max_length} tokens"))
    if address.metrics_port is not None:
        rows.append(("metrics", f"http://{config.metrics_host}:{address.metrics_port}/metrics"))
    if address.http_port is not None:
        scheme = "http" if config.tls is None else "https"
        rows.append(("OpenAI API", f"{scheme}://{config.http_host}:{address.http_port}/v1"))
        if config.has_console:
            rows.append(("console", f"{scheme}://{config.http_host}:{address.http_port}/"))
    rows.append(("open to", f"the principals of {config.identities}" if config.identities else everybody))
    policies = _in_force(services)
    rows += [
        ("policy", f"{policy.name}, revision {policy.revision}, serial {policy.serial}")
        for policy in policies
    ]
    if not policies:
        denied = services.policies is not None
        rows.append(("policies", "none: every request is denied" if denied else "none"))
    rows.append(("audit log", str(config.audit.directory.absolute()) if config.audit else "none"))
    rows.append(("try", f"{own_command()} chat --server {address.target}"))
    rows.append(("stop", "Ctrl-C or SIGTERM"))
    table = Table(show_header=False, box=None)
    table.add_row("serving", Text(f"{config.name or config.model} on {address.target}", style="bold green"))
    for name, value in rows:
        table.add_row(name, Text(value))
    notes().print(table)
