"""The command `saegis serve`: load a model and its SAEs, and serve them until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, fail, notes, own_command, print_json_line
from saegis_server.cli.serve.options import (
    Audit,
    Level,
    Limits,
    LogLevel,
    Network,
    Policies,
    ReadyFile,
    Served,
)
from saegis_server.cli.stages import StageDisplay, stage_display

if TYPE_CHECKING:
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

[bold]Models and SAEs[/bold]

Each is a directory or a hub id. A model is any Transformers causal language model in safetensors; an SAE lies
in SAELens's layout (cfg.json and sae_weights.safetensors). Without --model the reference model is served,
which ships with the package. The n-th --site belongs to the n-th --sae; without --site an SAE goes where its
file says. Further sites may be steered with directions.

[bold]Limits[/bold]

--limit takes principal.NAME and tenant.NAME with requests (at once), tokens_per_minute and bytes_per_minute,
and requests and held_bytes of all callers together. Callers beyond a limit are told when to try again.

SIGTERM and Ctrl-C let running requests finish within --grace seconds.
"""
REFERENCE_SAE_ID = "polyglot"


@options.grouped
def serve(
    *,
    served: Served,
    network: Network,
    policies: Policies,
    audit: Audit,
    limits: Limits,
    ready_file: ReadyFile = None,
    log_level: LogLevel = Level.WARNING,
    json: options.Json = False,
) -> None:
    """Serve a model with its SAEs over gRPC.

    Shows each stage of the start: loading, checking the SAEs, compiling, proving that steering works.
    With --json the stages and the address are JSON lines on standard output.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    settings = {
        **_network_settings(network),
        "policies": _policy_settings(policies),
        "audit": _audit_settings(audit),
        **asdict(limits),
        "rows": room_for_rows(limits.rows or []),
        "limits": caller_limits(limits.limits or []),
        "watch_features": limits.watch_features or [],
        "tenant_classes": tenant_classes(limits.tenant_classes or []),
        "ready_file": ready_file,
    }
    _run(server_config(served, settings), json)


def server_config(served: Served, settings: dict[str, Any]) -> ServerConfig:
    """The configuration; ends the command if it is not valid."""
    from pydantic import ValidationError

    from saegis_server.rpc.server.config import ServerConfig

    model, name, saes, sites = served.model, served.name, served.sae or [], served.site or []
    if sites and len(sites) < len(saes):
        raise fail(
            f"{len(saes)} SAEs but {len(sites)} sites",
            "give each --sae its --site, or none of them one",
            USAGE,
        )
    sources: list[dict[str, Any]] = [
        {"path": path, "site": sites[place] if sites else None} for place, path in enumerate(saes)
    ]
    if model is None:
        model, own = reference()
        name = name or "saegis/polyglot"
        sources = sources or [own]
    try:
        return ServerConfig.model_validate(
            {
                "model": model,
                "name": name,
                "saes": sources,
                "sites": sites[len(saes) :],
                "dtype": served.dtype,
                "device": served.device,
                "compile": served.compile.value,
                **settings,
            }
        )
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, fault['loc'])) or 'configuration'}: {fault['msg']}"
            for fault in error.errors()
        ]
        hint = f"see {own_command()} serve --help"
        raise fail("the configuration is wrong", hint, USAGE, problems) from error


def reference() -> tuple[str, dict[str, Any]]:
    """The shipped reference model and its SAE as a source; ends the command if they are missing."""
    from saegis_server.reference import MANIFEST, MODEL, SAE

    for path in (MODEL, SAE, MANIFEST):
        if not path.exists():
            raise fail(
                f"the reference model's weights are not at {path}",
                "install the package again, or serve a model of your own with --model and --sae",
            )
    return str(MODEL), {"path": str(SAE), "id": REFERENCE_SAE_ID}


def room_for_rows(texts: list[str]) -> dict[str, int]:
    """Room for rows by kind, from texts of the form KIND=NUMBER; other kinds keep their defaults."""
    from pydantic import TypeAdapter, ValidationError

    from saegis_server.rpc.server.config import Room, RowKind

    try:
        pairs = dict(text.split("=", 1) for text in texts)
        rooms = TypeAdapter(dict[RowKind, Room]).validate_python(pairs)
        return {str(kind): room for kind, room in rooms.items()}
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "a number is missing"
        hint = "write KIND=NUMBER, with edits, rules, bans, watches or conditions and 2 to 1024"
        raise fail(f"--rows {' '.join(texts)}: {reason}", hint, USAGE) from error


def tenant_classes(texts: list[str]) -> dict[str, list[str]]:
    """The tenants of each class, from texts of the form CLASS=TENANT,...; a class alone is of one tenant."""
    classes = {}
    for text in texts:
        name, equals, tenants = text.partition("=")
        if name in classes:
            raise fail(f"--tenant-class names {name} twice", "give all its tenants at once", USAGE)
        classes[name] = [tenant.strip() for tenant in tenants.split(",")] if equals else [name]
    return classes


def caller_limits(texts: list[str]) -> dict[str, Any]:
    """All limits, from texts of the form NAME=NUMBER; other limits keep their defaults."""
    from saegis_server.rpc.server.limits import Limits

    limits: dict[str, Any] = Limits().model_dump()
    for text in texts:
        name, equals, number = text.partition("=")
        *scope, key = name.split(".")
        place = limits
        for part in scope:
            place = place[part] if isinstance(place.get(part), dict) else {}
        if not equals or key not in place or isinstance(place[key], dict):
            names = [f"{who}.{what}" for who in ("principal", "tenant") for what in limits[who]]
            choices = ", ".join((*names, "requests", "held_bytes"))
            raise fail(f"--limit {text!r} sets no limit", f"give NAME=NUMBER of {choices}", USAGE)
        place[key] = number
    return limits


def _network_settings(network: Network) -> dict[str, Any]:
    settings = asdict(network)
    cert, key, client_ca = (settings.pop(name) for name in ("tls_cert", "tls_key", "client_ca"))
    if (cert, key, client_ca) != (None, None, None):
        if cert is None or key is None:
            raise fail("a certificate without its key", "give both --tls-cert and --tls-key", USAGE)
        settings["tls"] = {"cert": cert, "key": key, "client_ca": client_ca}
    if network.metrics_port < 0:
        settings["metrics_port"] = None
    return settings


def _policy_settings(policies: Policies) -> dict[str, Any] | None:
    settings = {**asdict(policies), "bundles": policies.bundles or [], "keys": policies.keys or []}
    if settings["bundles"] or policies.state is not None:
        return settings
    if settings["keys"]:
        raise fail("a policy key without policies", "give a --policy or a --policy-state", USAGE)
    return None


def _audit_settings(audit: Audit) -> dict[str, Any] | None:
    if audit.directory is not None:
        return asdict(audit)
    if audit.prompts or audit.key_file is not None:
        option = "--audit-prompts" if audit.prompts else "--audit-key-file"
        raise fail(f"{option} without an audit log", "give --audit its directory", USAGE)
    return None


def _run(config: ServerConfig, json: bool) -> None:
    """Serve until a signal comes; a known error ends the command with a message."""
    with stage_display(json) as display:
        # Importing torch takes seconds, so it is the first stage.
        display("loading the libraries", 0, 0)
        from transformers.utils import logging as transformers_logging

        from saegis_server.cli.serve.start_errors import start_failed
        from saegis_server.rpc.server.server import serve as serve_until_signalled

        # A second progress bar would tear the display.
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            asyncio.run(
                serve_until_signalled(
                    config,
                    display,
                    lambda address, services: _ready(address, services, config, display, json),
                )
            )
        except Exception as error:
            display.close()
            failure = start_failed(error)
            if failure is None:
                raise
            raise fail(*failure) from error
    if json:
        print_json_line({"event": "stopped"})
    else:
        notes().print("stopped")


def _ready(
    address: Address, services: Services, config: ServerConfig, display: StageDisplay, json: bool
) -> None:
    """Print that the server serves, where, and under which policies."""
    from saegis_server.policy.decide.disclosure import OPERATOR

    display.close()
    store = services.policies
    policies = [] if store is None else [policy.state.active for policy in store.all_for(OPERATOR)]
    audit = config.audit.directory.absolute() if config.audit else None
    if json:
        print_json_line(
            {
                "event": "ready",
                "target": address.target,
                "metrics_port": address.metrics_port,
                "pid": os.getpid(),
                "policies": [
                    {"name": policy.name, "revision": policy.revision, "serial": policy.serial}
                    for policy in policies
                ],
                "audit": None if audit is None else str(audit),
                "seconds": {stage: round(seconds, 3) for stage, seconds in display.seconds.items()},
            }
        )
        return
    everybody = "every program of this user" if config.unix else "every program of this machine"
    rows = [("SAE", f"{source.id or source.path} {source.site or ''}") for source in config.saes]
    if address.metrics_port is not None:
        rows.append(("metrics", f"http://{config.metrics_host}:{address.metrics_port}/metrics"))
    rows.append(("open to", f"the principals of {config.identities}" if config.identities else everybody))
    rows += [
        ("policy", f"{policy.name}, revision {policy.revision}, serial {policy.serial}")
        for policy in policies
    ]
    if not policies:
        rows.append(("policies", "none" if store is None else "none: every request is denied"))
    rows.append(("audit log", "none" if audit is None else str(audit)))
    rows.append(("try", f"{own_command()} chat --server {address.target}"))
    rows.append(("stop", "Ctrl-C or SIGTERM"))
    table = Table(show_header=False, box=None)
    table.add_row("serving", Text(f"{config.name or config.model} on {address.target}", style="bold green"))
    for name, value in rows:
        table.add_row(name, Text(value))
    notes().print(table)
