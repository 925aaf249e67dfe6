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


def to_path(text: str) -> Path:
    """A path. An empty text, mostly an unset variable, is refused: it would mean the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


class EngineName(enum.StrEnum):
    """What runs the model."""

    TORCH = "torch"
    VLLM = "vllm"


class Compile(enum.StrEnum):
    """When to compile the forward pass."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class LogFormat(enum.StrEnum):
    """How the log is written: a line of text for each message, or a JSON object."""

    TEXT = "text"
    JSON = "json"


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
        typer.Option(
            metavar="PATH_OR_HUB_ID",
            help="The language model; by default the reference model, and that with eyes for polyglot-eyes.",
        ),
    ] = None
    sae: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ID=]PATH_OR_HUB_ID",
            help="An SAE, with its name in requests; by default that of its directory. Also SAELens's "
            "release/sae_id and Neuronpedia's model/source. Again for another.",
        ),
    ] = None
    site: Annotated[
        list[str] | None,
        typer.Option(metavar="SITE", help="Where the SAE belongs, such as layers.12.resid_post."),
    ] = None
    norm_scaling: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID=FACTOR",
            help="The norm scaling factor of an SAE whose file does not state it. Again for another.",
        ),
    ] = None
    unmatched_saes: Annotated[
        Unmatched,
        typer.Option(help="What to do with an SAE whose files name another model or place than is served."),
    ] = Unmatched.REFUSE
    directions: Annotated[
        list[Path] | None,
        typer.Option(
            parser=to_path,
            metavar="FILE_OR_DIR",
            help="A direction that everybody may name as its file is named, in safetensors or npz, or a "
            "folder of them. Again for another.",
        ),
    ] = None
    direction_state: Annotated[
        Path | None,
        typer.Option(
            parser=to_path,
            metavar="DIR",
            help="Where directions that callers upload survive a restart; without it they end with the "
            "server.",
        ),
    ] = None
    name: Annotated[str | None, typer.Option(metavar="NAME", help="What the model is called in answers.")] = (
        None
    )
    dtype: Dtype = DtypeName.AUTO
    device: Device = "cpu"
    engine: Annotated[
        EngineName,
        typer.Option(
            help="What runs the model: torch is the embedded engine, vllm is vLLM with its prefix cache."
        ),
    ] = EngineName.TORCH
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="How many processes share each layer of the model; with --engine vllm alone.",
        ),
    ] = 1
    compile: Annotated[
        Compile, typer.Option(help="Compile the forward pass; auto does where a C++ compiler is found.")
    ] = Compile.AUTO
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant",
            help="Give each sequence steps of its own, so that no bit of an answer depends on what runs "
            "beside it; slower where several run.",
        ),
    ] = False


class Console(enum.StrEnum):
    """Whether the HTTP port has pages for people."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


_network = partial(typer.Option, rich_help_panel="Network")


@dataclass(frozen=True, slots=True)
class Network:
    """Where the server listens, and who may call. metrics_port, http_port: -1 for none."""

    host: Annotated[str, _network(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _network(min=0, max=65535, help="0 takes a free one.")] = 50051
    unix: Annotated[
        Path | None,
        _network(
            parser=to_path,
            metavar="PATH",
            help="Listen on a Unix socket of this user's alone instead; clients say unix:PATH.",
        ),
    ] = None
    http_host: Annotated[
        str, _network(metavar="ADDRESS", help="Address of the OpenAI-compatible HTTP port.")
    ] = "127.0.0.1"
    http_port: Annotated[
        int,
        _network(
            min=-1,
            max=65535,
            help="HTTP port of /v1/chat/completions and its like; 0 takes a free one, -1 is for none.",
        ),
    ] = -1
    http_origins: Annotated[
        list[str] | None,
        _network(
            "--http-origin",
            metavar="ORIGIN",
            help="Where web pages come from that may use the HTTP port, such as https://example.org. Again "
            "for another.",
        ),
    ] = None
    console: Annotated[
        Console,
        _network(
            help="Pages for people at / of the HTTP port; auto is where only this machine can reach it."
        ),
    ] = Console.AUTO
    presets: Annotated[
        list[str] | None,
        _network(
            "--preset",
            metavar="NAME=FILE",
            help="A program that clients of the HTTP port can ask for as the model MODEL@NAME: edits and "
            "watches in YAML or JSON. Again for another.",
        ),
    ] = None
    metrics_host: Annotated[
        str,
        _network(
            metavar="ADDRESS",
            help="Address of the HTTP port of metrics and probes, which whoever reaches it can read.",
        ),
    ] = "127.0.0.1"
    metrics_port: Annotated[
        int,
        _network(
            min=-1,
            max=65535,
            help="HTTP port of /metrics, /healthz and /readyz; 0 takes a free one, -1 turns it off.",
        ),
    ] = 9464
    tls_cert: Annotated[
        Path | None, _network(parser=to_path, metavar="FILE", help="PEM certificate chain.")
    ] = None
    tls_key: Annotated[Path | None, _network(parser=to_path, metavar="FILE", help="PEM private key.")] = None
    client_ca: Annotated[
        Path | None,
        _network(parser=to_path, metavar="FILE", help="PEM authorities; clients then need a certificate."),
    ] = None
    identities: Annotated[
        Path | None,
        _network(
            parser=to_path,
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
            parser=to_path,
            metavar="DIR_OR_TAR",
            help="A policy to put in force, as a bundle. Again for another.",
        ),
    ] = None
    state: Annotated[
        Path | None,
        _policies(
            "--policy-state",
            parser=to_path,
            metavar="DIR",
            help="Where policies and their history survive a restart.",
        ),
    ] = None
    keys: Annotated[
        list[Path] | None,
        _policies(
            "--policy-key",
            parser=to_path,
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
        _audit("--audit", parser=to_path, metavar="DIR", help="Keep an audit log of decisions and answers."),
    ] = None
    fsync: Annotated[Fsync, _audit("--audit-fsync", help="When records are forced to the disk.")] = (
        Fsync.ALWAYS
    )
    key_file: Annotated[
        Path | None,
        _audit("--audit-key-file", parser=to_path, metavar="FILE", help="A key for the chain of records."),
    ] = None
    prompts: Annotated[
        bool, _audit("--audit-prompts/--no-audit-prompts", help="Write the text of prompts too.")
    ] = False
    on_failure: Annotated[
        OnFailure,
        _audit("--audit-on-failure", help="What to do with requests while the log cannot be written."),
    ] = OnFailure.REFUSE
    mask: Annotated[
        list[str] | None,
        _audit(
            "--audit-mask",
            metavar="POINTER",
            help="What records hide, as a JSON pointer such as /edits/*/label. Again for another.",
        ),
    ] = None
    interval_seconds: Annotated[
        float,
        _audit(
            "--audit-interval",
            min=0.0,
            max=3600.0,
            help="Seconds between two writes of --audit-fsync interval.",
        ),
    ] = 1.0
    max_bytes: Annotated[
        int, _audit("--audit-max-bytes", min=1024, help="Size at which a new file is begun.")
    ] = 64 * 2**20
    keep: Annotated[
        int | None,
        _audit("--audit-keep", min=1, help="How many closed files stay; by default all of them."),
    ] = None
    queue: Annotated[
        int, _audit("--audit-queue", min=1, max=1_000_000, help="Records that may wait to be written.")
    ] = 4096
    identity_per_minute: Annotated[
        int,
        _audit(
            "--audit-identity-per-minute", min=0, help="Failed authentications that are recorded in a minute."
        ),
    ] = 60


_limits = partial(typer.Option, rich_help_panel="Limits")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests and callers, as written on the command line."""

    kv_memory: Annotated[
        str | None,
        _limits(
            metavar="BYTES_OR_SHARE",
            help="Memory for the sequences that run, such as 4GiB, or a share of what is free after the "
            "weights; by default 0.5, on a GPU 0.85.",
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None,
        _limits(
            min=1, max=1024, help="Sequences that share a batch; by default 16, or those that memory is for."
        ),
    ] = None
    max_model_len: Annotated[
        int | None,
        _limits(
            min=2,
            help="Tokens of prompt and completion together; by default what the model allows and memory is "
            "for.",
        ),
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
    fair_slots: Annotated[
        int | None,
        _limits(
            min=0,
            max=1023,
            help="Places in the batch kept for tenants that had one lately; by default an eighth of them.",
        ),
    ] = None
    fair_seconds: Annotated[
        float, _limits(min=0.0, max=3600.0, help="How long ago lately is, in seconds.")
    ] = 60.0
    fair_share: Annotated[
        float,
        _limits(
            min=0.0, max=1.0, help="The share of the queue that a caller may fill while the queue is full."
        ),
    ] = 0.25
    max_message_bytes: Annotated[
        int, _limits(min=1024, max=64 * 2**20, help="The largest request, in bytes.")
    ] = 4 * 2**20
    max_pictures: Annotated[
        int, _limits(min=0, max=64, help="The most pictures of a request; 0 for none.")
    ] = 8
    max_picture_bytes: Annotated[
        int, _limits(min=1024, max=64 * 2**20, help="The largest file of a picture, in bytes.")
    ] = 4 * 2**20
    max_picture_pixels: Annotated[int, _limits(min=1, max=2**26, help="The most pixels of a picture.")] = (
        2**24
    )
    max_picture_side: Annotated[
        int, _limits(min=1, max=65_535, help="The longest side of a picture, in pixels.")
    ] = 8192
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
    usage_every: Annotated[
        int,
        _limits(
            min=0,
            max=1_000_000,
            help="Count the use of every feature at one of so many steps, such as 16; 0 is never.",
        ),
    ] = 0
    usage_state: Annotated[
        Path | None,
        _limits(
            parser=to_path,
            metavar="DIR",
            help="Keep what is counted so in this folder, so that it survives a restart.",
        ),
    ] = None
    stall_seconds: Annotated[
        float,
        _limits(
            "--stall",
            min=0.0,
            max=3600.0,
            help="Seconds that the event loop may be stuck before /healthz says no; 0 is for ever.",
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


_process = partial(typer.Option, rich_help_panel="Process")


@dataclass(frozen=True, slots=True)
class Process:
    """What the process tells beside its answers."""

    ready_file: Annotated[
        Path | None,
        _process(
            parser=to_path,
            metavar="FILE",
            help="Written as JSON (target, metrics_port, pid) once it serves.",
        ),
    ] = None
    traces: Annotated[
        str | None,
        _process(
            metavar="URL",
            help="Send spans of requests to this OTLP endpoint, such as http://127.0.0.1:4318/v1/traces.",
        ),
    ] = None
    log_level: Annotated[
        Level, _process(case_sensitive=False, help="What the log tells on standard error.")
    ] = Level.WARNING
    log_format: Annotated[
        LogFormat, _process(help="Lines of text, or JSON objects with the ids of requests.")
    ] = LogFormat.TEXT


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """All options of a server but the file that they may come from."""

    served: Served = Served()
    network: Network = Network()
    policies: Policies = Policies()
    audit: Audit = Audit()
    limits: Limits = Limits()
    process: Process = Process()
