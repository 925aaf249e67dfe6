"""The configuration of a server from the settings as written; what is wrong with them ends the command."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from saegis.cli.output import USAGE, fail, own_command
from saegis_server.cli.serve.options import Audit, Network, Policies, Served, ServerOptions
from saegis_server.reference import EYES_NAME

if TYPE_CHECKING:
    from saegis_server.rpc.server.config import ServerConfig

REFERENCE_SAE_ID = "polyglot"
#: An SAE's id before its path. A path with an equals sign can be written ./PATH.
_NAMED = re.compile(r"([^/=~]*)=(.*)", re.DOTALL)


def configuration(options: ServerOptions) -> ServerConfig:
    """The configuration of a server; ends the command if it is not valid."""
    from pydantic import ValidationError

    from saegis_server.rpc.server.config import ServerConfig

    limits = options.limits
    settings = {
        **_served_settings(options.served),
        **_network_settings(options.network),
        "policies": _policy_settings(options.policies),
        "audit": _audit_settings(options.audit),
        **asdict(limits),
        "rows": room_for_rows(limits.rows or []),
        "limits": caller_limits(limits.limits or []),
        "watch_features": limits.watch_features or [],
        "tenant_classes": tenant_classes(limits.tenant_classes or []),
        "ready_file": options.process.ready_file,
        "traces": options.process.traces,
    }
    try:
        return ServerConfig.model_validate(settings)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, fault['loc'])) or 'configuration'}: {fault['msg']}"
            for fault in error.errors()
        ]
        hint = f"see {own_command()} serve --help"
        raise fail("the configuration is wrong", hint, USAGE, problems) from error


def reference(sees: bool = False) -> tuple[str, dict[str, Any]]:
    """The shipped reference model, or the one with eyes, and its SAE as a source; ends the command if they
    are missing."""
    from saegis_server.reference import EYES, MANIFEST, MODEL, SAE

    model = EYES if sees else MODEL
    if sees and not EYES.exists():
        raise fail(
            f"{EYES_NAME} does not ship with this version: there is nothing at {EYES}",
            "python -m saegis_lab.polyglot.eyes makes it; serve its folder with --model and --sae",
        )
    for path in (model, SAE, MANIFEST):
        if not path.exists():
            raise fail(
                f"the reference model's weights are not at {path}",
                "install the package again, or serve a model of your own with --model and --sae",
            )
    return str(model), {"path": str(SAE), "id": REFERENCE_SAE_ID}


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
        name, equals, listed = text.partition("=")
        tenants = [tenant.strip() for tenant in listed.split(",")] if equals else [name]
        if not (name and all(tenants)):
            what = "a class without a name" if not name else f"a tenant without a name in {name}"
            raise fail(f"--tenant-class {text!r} has {what}", "give CLASS=TENANT,...", USAGE)
        if name in classes:
            raise fail(f"--tenant-class names {name} twice", "give all its tenants at once", USAGE)
        classes[name] = tenants
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
            nested = {name: part for name, part in limits.items() if isinstance(part, dict)}
            names = [f"{name}.{what}" for name, part in nested.items() for what in part]
            choices = ", ".join((*names, *(name for name in limits if name not in nested)))
            raise fail(f"--limit {text!r} sets no limit", f"give NAME=NUMBER of {choices}", USAGE)
        place[key] = number
    return limits


def _served_settings(served: Served) -> dict[str, Any]:
    model, name, sites = served.model, served.name, served.site or []
    sources = [sae_source(text) for text in served.sae or []]
    if sites and len(sites) < len(sources):
        raise fail(
            f"{len(sources)} SAEs but {len(sites)} sites",
            "give each --sae its --site, or none of them one",
            USAGE,
        )
    for source, site in zip(sources, sites, strict=False):
        source["site"] = site
    further = sites[len(sources) :]
    if model is None or model == EYES_NAME:
        # With eyes it is the same language model: what is in force for its name holds for both.
        model, own = reference(sees=model is not None)
        name = "saegis/polyglot" if name is None else name
        sources = sources or [own]
    _scale(sources, served.norm_scaling or [])
    return {
        "model": model,
        "name": name,
        "saes": sources,
        "unmatched_saes": served.unmatched_saes,
        "sites": further,
        "directions": served.directions or [],
        "direction_state": served.direction_state,
        "dtype": served.dtype,
        "device": served.device,
        "compile": served.compile.value,
        "batch_invariant": served.batch_invariant,
        "engine": served.engine,
        "tensor_parallel_size": served.tensor_parallel_size,
    }


def sae_source(text: str) -> dict[str, Any]:
    """An SAE as written, [ID=]PATH_OR_HUB_ID: its path, and its id if there is one; ends the command if
    either is left empty."""
    named = _NAMED.fullmatch(text)
    if named is None:
        return {"path": text}
    for part, what in ((named[1], "name"), (named[2], "path")):
        if not part.strip():
            raise fail(f"--sae {text!r} has an SAE without a {what}", "give ID=PATH, or PATH alone", USAGE)
    return {"id": named[1], "path": named[2]}


def _scale(sources: list[dict[str, Any]], texts: list[str]) -> None:
    """Give SAEs their norm scaling factors, from texts of the form ID=FACTOR."""
    named = {source["id"]: source for source in sources if "id" in source}
    for text in texts:
        name, equals, factor = text.partition("=")
        if not equals or name not in named:
            raise fail(
                f"--norm-scaling {text!r} belongs to no SAE",
                f"give ID=FACTOR, with an id that an --sae has: {', '.join(named) or 'none has one'}",
                USAGE,
            )
        named[name]["norm_scaling_factor"] = factor


def _network_settings(network: Network) -> dict[str, Any]:
    settings = asdict(network)
    cert, key, client_ca = (settings.pop(name) for name in ("tls_cert", "tls_key", "client_ca"))
    if (cert, key, client_ca) != (None, None, None):
        if cert is None or key is None:
            raise fail("a certificate without its key", "give both --tls-cert and --tls-key", USAGE)
        settings["tls"] = {"cert": cert, "key": key, "client_ca": client_ca}
    for name in ("metrics_port", "http_port"):
        if settings[name] < 0:
            settings[name] = None
    settings["http_origins"] = network.http_origins or []
    settings["presets"] = presets(network.presets or [])
    return settings


def presets(texts: list[str]) -> dict[str, str]:
    """The file of each preset, from texts of the form NAME=FILE."""
    files = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path:
            raise fail(f"--preset {text!r} has no {'file' if name else 'name'}", "give NAME=FILE", USAGE)
        if name in files:
            raise fail(f"--preset names {name} twice", "give each preset a name of its own", USAGE)
        files[name] = path
    return files


def _policy_settings(policies: Policies) -> dict[str, Any] | None:
    settings = {**asdict(policies), "bundles": policies.bundles or [], "keys": policies.keys or []}
    if settings["bundles"] or policies.state is not None:
        return settings
    if settings["keys"]:
        raise fail("a policy key without policies", "give a --policy or a --policy-state", USAGE)
    return None


def _audit_settings(audit: Audit) -> dict[str, Any] | None:
    if audit.directory is not None:
        return {**asdict(audit), "mask": audit.mask or []}
    # What hides or guards records, or tells more, must not be left out in silence.
    needing = {
        "--audit-prompts": audit.prompts,
        "--audit-key-file": audit.key_file,
        "--audit-mask": audit.mask,
    }
    for option, given in needing.items():
        if given:
            raise fail(f"{option} without an audit log", "give --audit its directory", USAGE)
    return None
