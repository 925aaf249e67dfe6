"""The command `saegis serve`: load a model and its SAEs, and serve them until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, fail, notes, print_json_line
from saegis_server.audit import Fsync, OnFailure
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.cli.serve import options as at
from saegis_server.cli.stages import StageDisplay, stage_display
from saegis_server.policy.errors import Unmatched

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


def serve(
    model: at.Model = None,
    sae: at.Saes = None,
    site: at.Sites = None,
    name: at.Name = None,
    dtype: Dtype = DtypeName.AUTO,
    device: Device = "cpu",
    compile: at.CompileWhen = at.Compile.AUTO,
    host: at.Host = "127.0.0.1",
    port: at.Port = 50051,
    unix: at.Unix = None,
    metrics_port: at.MetricsPort = 9464,
    tls_cert: at.TlsCert = None,
    tls_key: at.TlsKey = None,
    client_ca: at.ClientCa = None,
    identities: at.Identities = None,
    policy: at.Policies = None,
    policy_state: at.PolicyState = None,
    policy_key: at.PolicyKeys = None,
    unmatched_policies: at.UnmatchedPolicies = Unmatched.REFUSE,
    audit: at.AuditDirectory = None,
    audit_fsync: at.AuditFsync = Fsync.ALWAYS,
    audit_key_file: at.AuditKeyFile = None,
    audit_prompts: at.AuditPrompts = False,
    audit_on_failure: at.AuditOnFailure = OnFailure.REFUSE,
    reflection: at.Reflection = True,
    max_num_seqs: at.MaxNumSeqs = 16,
    max_model_len: at.MaxModelLen = None,
    rows: at.Rows = None,
    queue_limit: at.QueueLimit = 256,
    limit: at.Limit = None,
    stall: at.Stall = 10.0,
    grace: at.Grace = 30.0,
    steer_first_token: at.SteerFirstToken = False,
    read_first_token: at.ReadFirstToken = False,
    ready_file: at.ReadyFile = None,
    log_level: at.LogLevel = at.Level.WARNING,
    json: options.Json = False,
) -> None:
    """Serve a model with its SAEs over gRPC.

    Shows each stage of the start: loading, checking the SAEs, compiling, proving that steering works.
    With --json the stages and the address are JSON lines on standard output.
    """
    _log_to_stderr(log_level)
    config = _config(
        model=model,
        sae=sae or [],
        site=site or [],
        name=name,
        dtype=dtype,
        device=device,
        compile=compile.value,
        host=host,
        port=port,
        unix=unix,
        metrics_port=None if metrics_port < 0 else metrics_port,
        tls=_tls(tls_cert, tls_key, client_ca),
        identities=identities,
        policies=_policies(policy or [], policy_state, policy_key or [], unmatched_policies),
        audit=_audit(audit, audit_fsync, audit_key_file, audit_prompts, audit_on_failure),
        reflection=reflection,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        rows=room_for_rows(rows or []),
        queue_limit=queue_limit,
        limits=_limits(limit or []),
        stall_seconds=stall,
        grace_seconds=grace,
        steer_first_token=steer_first_token,
        read_first_token=read_first_token,
        ready_file=ready_file,
    )
    _run(config, json)


def _config(
    *, model: str | None, sae: list[str], site: list[str], name: str | None, **rest: Any
) -> ServerConfig:
    """The configuration; ends the command where it does not hold together."""
    from pydantic import ValidationError

    from saegis_server.rpc.server.config import ServerConfig

    if site and len(site) < len(sae):
        raise fail(
            f"{len(sae)} SAEs but {len(site)} sites", "give each --sae its --site, or none of them one", USAGE
        )
    sources: list[dict[str, Any]] = [
        {"path": path, "site": site[place] if site else None} for place, path in enumerate(sae)
    ]
    if model is None:
        model, own = reference()
        name = name or "saegis/polyglot"
        sources = sources or [own]
    try:
        return ServerConfig.model_validate(
            {"model": model, "name": name, "saes": sources, "sites": site[len(sae) :], **rest}
        )
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, each['loc'])) or 'configuration'}: {each['msg']}" for each in error.errors()
        ]
        raise fail("the configuration is wrong", "see saegis serve --help", USAGE, problems) from error


def reference() -> tuple[str, dict[str, Any]]:
    """The shipped reference model and its SAE as a source; ends the command where they are missing."""
    from saegis_server.reference import MANIFEST, MODEL, SAE

    for path in (MODEL, SAE, MANIFEST):
        if not path.exists():
            raise fail(
                f"the reference model's weights are not at {path}",
                "install the package again, or serve a model of your own with --model and --sae",
            )
    return str(MODEL), {"path": str(SAE), "id": REFERENCE_SAE_ID}


def room_for_rows(given: list[str]) -> dict[str, int]:
    """Room for rows by kind, from KIND=NUMBER; what is not named keeps its default."""
    from pydantic import TypeAdapter, ValidationError

    from saegis_server.rpc.server.config import Room, RowKind

    try:
        pairs = dict(text.split("=", 1) for text in given)
        rooms = TypeAdapter(dict[RowKind, Room]).validate_python(pairs)
        return {str(kind): room for kind, room in rooms.items()}
    except ValueError as error:
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "a number is missing"
        hint = "write KIND=NUMBER, with edits, rules, bans, watches or conditions and 2 to 1024"
        raise fail(f"--rows {' '.join(given)}: {told}", hint, USAGE) from error


def _limits(given: list[str]) -> dict[str, Any]:
    """Limits by principal, tenant and server, from NAME=NUMBER; what is unset keeps its default."""
    from saegis_server.rpc.server.limits import Limits

    found: dict[str, Any] = Limits().model_dump()
    for each in given:
        name, equals, number = each.partition("=")
        *scope, key = name.split(".")
        place = found
        for part in scope:
            place = place[part] if isinstance(place.get(part), dict) else {}
        if not equals or key not in place or isinstance(place[key], dict):
            names = [f"{who}.{what}" for who in ("principal", "tenant") for what in found[who]]
            known = ", ".join((*names, "requests", "held_bytes"))
            raise fail(f"--limit {each!r} sets no limit", f"give NAME=NUMBER of {known}", USAGE)
        place[key] = number
    return found


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> dict[str, Path | None] | None:
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise fail("a certificate without its key", "give both --tls-cert and --tls-key", USAGE)
    return {"cert": cert, "key": key, "client_ca": client_ca}


def _policies(
    bundles: list[Path], state: Path | None, keys: list[Path], unmatched: Unmatched
) -> dict[str, Any] | None:
    if not bundles and state is None:
        if keys:
            raise fail("a policy key without policies", "give a --policy or a --policy-state", USAGE)
        return None
    return {"bundles": bundles, "state": state, "keys": keys, "unmatched": unmatched}


def _audit(
    directory: Path | None, fsync: Fsync, key_file: Path | None, prompts: bool, on_failure: OnFailure
) -> dict[str, Any] | None:
    if directory is None:
        if key_file is not None or prompts:
            told = "--audit-prompts" if prompts else "--audit-key-file"
            raise fail(f"{told} without an audit log", "give --audit its directory", USAGE)
        return None
    return {
        "directory": directory,
        "fsync": fsync,
        "key_file": key_file,
        "prompts": prompts,
        "on_failure": on_failure,
    }


def _log_to_stderr(level: at.Level) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _run(config: ServerConfig, json: bool) -> None:
    """Serve until a signal comes; what stops the start or the service ends the command with a message."""
    with stage_display(json) as display:
        # Importing torch takes seconds: it is the first thing to show.
        display("loading the libraries", 0, 0)
        from transformers.utils import logging as transformers_logging

        from saegis_server.cli.serve.start_errors import start_failed
        from saegis_server.rpc.server.server import serve as serve_until_signalled

        # The stages are shown here; a second bar would tear the display.
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
    """Tell that the server serves, where, and by which rules."""
    import os

    from saegis_server.policy.decide.disclosure import OPERATOR

    display.close()
    store = services.policies
    policies = [] if store is None else [each.state.active for each in store.all_for(OPERATOR)]
    audit = config.audit.directory.absolute() if config.audit else None
    if json:
        print_json_line(
            {
                "event": "ready",
                "target": address.target,
                "metrics_port": address.metrics_port,
                "pid": os.getpid(),
                "policies": [
                    {"name": each.name, "revision": each.revision, "serial": each.serial} for each in policies
                ],
                "audit": None if audit is None else str(audit),
                "seconds": {stage: round(seconds, 3) for stage, seconds in display.seconds.items()},
            }
        )
        return
    table = Table(show_header=False, box=None)
    table.add_row("serving", Text(f"{config.name or config.model} on {address.target}", style="bold green"))
    for source in config.saes:
        table.add_row("SAE", Text(f"{source.id or source.path} {source.site or ''}"))
    if address.metrics_port is not None:
        table.add_row("metrics", Text(f"http://{config.metrics_host}:{address.metrics_port}/metrics"))
    everybody = "every program of this user" if config.unix else "every program of this machine"
    table.add_row(
        "open to", Text(f"the principals of {config.identities}" if config.identities else everybody)
    )
    for each in policies:
        table.add_row("policy", Text(f"{each.name}, revision {each.revision}, serial {each.serial}"))
    if not policies:
        table.add_row("policies", Text("none" if store is None else "none: every request is denied"))
    table.add_row("audit log", Text("none" if audit is None else str(audit)))
    table.add_row("try", Text(f"saegis chat --server {address.target}"))
    table.add_row("stop", Text("Ctrl-C or SIGTERM"))
    notes().print(table)
