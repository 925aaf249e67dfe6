"""The options of `saegis serve`, in groups. A field that is a setting of `ServerConfig` has its name."""

import enum
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from saegis_server.audit import Fsync, OnFailure
from saegis_server.cli.options import Device, Dtype, DtypeName
from saegis_server.policy.errors import Unmatched


def _path(text: str) -> Path:
    """A path. An empty text, mostly an unset variable, is refused: it would mean the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


class Compile(enum.StrEnum):
    """When to compile the forward pass."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Level(enum.StrEnum):
    """The least severe messages that the log shows."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and on which device. The n-th site belongs to the n-th SAE; further sites have none."""

    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_HUB_ID", help="The language model; by default the reference model."),
    ] = None
    sae: Annotated[
        list[str] | None, typer.Option(metavar="PATH_OR_HUB_ID", help="An SAE. Again for another.")
    ] = None
    site: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Where the SAE belongs, such as layers.12.resid_post."),
    ] = None
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the model is called in answers.")] = (
        None
    )
    dtype: Dtype = DtypeName.AUTO
    device: Device = "cpu"
    compile: Annotated[
        Compile, typer.Option(help="Compile the forward pass; auto does where a C++ compiler is found.")
    ] = Compile.AUTO


_network = partial(typer.Option, rich_help_panel="Network")


@dataclass(frozen=True, slots=True)
class Network:
    """Where the server listens, and who may call. metrics_port: -1 for none."""

    host: Annotated[str, _network(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _network(min=0, max=65535, help="0 takes a free one.")] = 50051
    unix: Annotated[
        Path | None,
        _network(
            parser=_path,
            metavar="PATH",
            help="Listen on a Unix socket of this user's alone instead; clients say unix:PATH.",
        ),
    ] = None
    metrics_port: Annotated[
        int,
        _network(
            min=-1,
            max=65535,
            help="Prometheus endpoint on loopback; 0 takes a free port, -1 turns it off.",
        ),
    ] = 9464
    tls_cert: Annotated[
        Path | None, _network(parser=_path, metavar="FILE", help="PEM certificate chain.")
    ] = None
    tls_key: Annotated[Path | None, _network(parser=_path, metavar="FILE", help="PEM private key.")] = None
    client_ca: Annotated[
        Path | None,
        _network(parser=_path, metavar="FILE", help="PEM authorities; clients then need a certificate."),
    ] = None
    identities: Annotated[
        Path | None,
        _network(
            parser=_path,
            metavar="FILE",
            help="YAML file of those who may call, needed beyond loopback; see saegis token new --help.",
        ),
    ] = None
    reflection: Annotated[bool, _network(help="Let clients read the contract.")] = True


_policies = partial(typer.Option, rich_help_panel="Policies")


@dataclass(frozen=True, slots=True)
class Policies:
    """Which policies govern requests."""

    bundles: Annotated[
        list[Path] | None,
        _policies(
            "--policy",
            parser=_path,
            metavar="DIR_OR_TAR",
            help="A policy to put in force, as a bundle. Again for another.",
        ),
    ] = None
    state: Annotated[
        Path | None,
        _policies(
            "--policy-state",
            parser=_path,
            metavar="DIR",
            help="Where policies and their history survive a restart.",
        ),
    ] = None
    keys: Annotated[
        list[Path] | None,
        _policies(
            "--policy-key",
            parser=_path,
            metavar="FILE.pub",
            help="A public key; bundles must be signed by it. Again for another.",
        ),
    ] = None
    unmatched: Annotated[
        Unmatched,
        _policies(
            "--unmatched-policies",
            help="What to do with a policy that can match no model, tenant or role here, or names one that "
            "only looks alike.",
        ),
    ] = Unmatched.REFUSE


_audit = partial(typer.Option, rich_help_panel="Audit")


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit log, where there is a directory for it."""

    directory: Annotated[
        Path | None,
        _audit("--audit", parser=_path, metavar="DIR", help="Keep an audit log of decisions and answers."),
    ] = None
    fsync: Annotated[Fsync, _audit("--audit-fsync", help="When records are forced to the disk.")] = (
        Fsync.ALWAYS
    )
    key_file: Annotated[
        Path | None,
        _audit("--audit-key-file", parser=_path, metavar="FILE", help="A key for the chain of records."),
    ] = None
    prompts: Annotated[
        bool, _audit("--audit-prompts/--no-audit-prompts", help="Write the text of prompts too.")
    ] = False
    on_failure: Annotated[
        OnFailure,
        _audit("--audit-on-failure", help="What to do with requests while the log cannot be written."),
    ] = OnFailure.REFUSE


_limits = partial(typer.Option, rich_help_panel="Limits")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests and callers, as written on the command line."""

    max_num_seqs: Annotated[int, _limits(min=1, max=1024, help="Sequences that share a batch.")] = 16
    max_model_len: Annotated[
        int | None,
        _limits(min=2, help="Tokens of prompt and completion together; by default what the model allows."),
    ] = None
    rows: Annotated[
        list[str] | None,
        _limits(
            metavar="KIND=NUMBER",
            help="How many edits, rules, bans or watches a sequence has room for at each site, such as "
            "bans=64, and how many conditions; by default edits=32, rules=32, bans=32, watches=64, "
            "conditions=32. Again for another.",
        ),
    ] = None
    queue_limit: Annotated[int, _limits(min=1, max=1_000_000, help="Sequences that may wait.")] = 256
    limits: Annotated[
        list[str] | None,
        _limits(
            "--limit",
            metavar="NAME=NUMBER",
            help="What a caller may have, such as tenant.tokens_per_minute=60000. Again for another.",
        ),
    ] = None
    tenant_classes: Annotated[
        list[str] | None,
        _limits(
            "--tenant-class",
            metavar="CLASS=TENANT,...",
            help="Tenants that metrics tell apart as one class; all others are _other. Again for another.",
        ),
    ] = None
    watch_features: Annotated[
        list[str] | None,
        _limits(
            "--watch-feature",
            metavar="SAE:INDEX",
            help="A feature whose firing metrics count, beside those that policies name. Again for another.",
        ),
    ] = None
    sample_seconds: Annotated[
        float,
        _limits(
            "--sample-saes",
            min=0.0,
            max=86_400.0,
            help="Seconds between two prompts that are encoded whole, for metrics of the SAEs; 0 is never.",
        ),
    ] = 10.0
    stall_seconds: Annotated[
        float,
        _limits(
            "--stall",
            min=0.0,
            max=3600.0,
            help="Seconds that the event loop may be stuck before /livez says no; 0 is for ever.",
        ),
    ] = 10.0
    grace_seconds: Annotated[
        float,
        _limits("--grace", min=0.0, max=3600.0, help="Seconds that running requests may take to end."),
    ] = 30.0
    steer_first_token: Annotated[
        bool,
        _limits(
            "--steer-first-token",
            help="Let edits and rules move a text's first token also where it is the model's own BOS.",
        ),
    ] = False
    read_first_token: Annotated[
        bool, _limits("--read-first-token", help="Let conditions and contrasts read that token too.")
    ] = False


ReadyFile = Annotated[
    Path | None,
    typer.Option(
        parser=_path, metavar="FILE", help="Written as JSON (target, metrics_port, pid) once it serves."
    ),
]
LogLevel = Annotated[Level, typer.Option(case_sensitive=False, help="What the log tells on standard error.")]
