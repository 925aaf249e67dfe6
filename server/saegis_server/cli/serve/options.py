"""The options of `saegis serve`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from saegis_server.audit import Fsync, OnFailure
from saegis_server.policy.errors import Unmatched

_PANEL_AUDIT = "Audit"
_PANEL_LIMITS = "Limits"
_PANEL_NETWORK = "Network"
_PANEL_POLICIES = "Policies"


def _path(text: str) -> Path:
    """A path. An empty one is most often a variable that is not set, and would mean the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty")
    return Path(text)


class Compile(enum.StrEnum):
    """When to compile the forward pass."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Level(enum.StrEnum):
    """From which level on the log tells of what happens."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


Model = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_HUB_ID", help="The language model; by default the reference model."),
]
Saes = Annotated[list[str] | None, typer.Option(metavar="PATH_OR_HUB_ID", help="An SAE. Again for another.")]
Sites = Annotated[
    list[str] | None,
    typer.Option(metavar="SITE", help="Where the SAE belongs, such as layers.12.resid_post."),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What the model is called in answers.")]
CompileWhen = Annotated[
    Compile, typer.Option(help="Compile the forward pass; auto does where a C++ compiler is found.")
]
Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen on.", rich_help_panel=_PANEL_NETWORK)
]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_PANEL_NETWORK)
]
Unix = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="PATH",
        help="Listen on a Unix socket of this user's alone instead; clients say unix:PATH.",
        rich_help_panel=_PANEL_NETWORK,
    ),
]
MetricsPort = Annotated[
    int,
    typer.Option(
        min=-1,
        max=65535,
        help="Prometheus endpoint on loopback; 0 takes a free port, -1 turns it off.",
        rich_help_panel=_PANEL_NETWORK,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(parser=_path, metavar="FILE", help="PEM certificate chain.", rich_help_panel=_PANEL_NETWORK),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(parser=_path, metavar="FILE", help="PEM private key.", rich_help_panel=_PANEL_NETWORK),
]
ClientCa = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="FILE",
        help="PEM authorities; clients then need a certificate.",
        rich_help_panel=_PANEL_NETWORK,
    ),
]
Identities = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="FILE",
        help="YAML file of those who may call, needed beyond loopback; see saegis token new --help.",
        rich_help_panel=_PANEL_NETWORK,
    ),
]
Policies = Annotated[
    list[Path] | None,
    typer.Option(
        parser=_path,
        metavar="DIR_OR_TAR",
        help="A policy to put in force, as a bundle. Again for another.",
        rich_help_panel=_PANEL_POLICIES,
    ),
]
PolicyState = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="DIR",
        help="Where policies and their history survive a restart.",
        rich_help_panel=_PANEL_POLICIES,
    ),
]
PolicyKeys = Annotated[
    list[Path] | None,
    typer.Option(
        parser=_path,
        metavar="FILE.pub",
        help="A public key; bundles must be signed by it. Again for another.",
        rich_help_panel=_PANEL_POLICIES,
    ),
]
UnmatchedPolicies = Annotated[
    Unmatched,
    typer.Option(
        help="What to do with a policy that can match no model, tenant or role here, or names one that only "
        "looks alike.",
        rich_help_panel=_PANEL_POLICIES,
    ),
]
AuditDirectory = Annotated[
    Path | None,
    typer.Option(
        parser=_path,
        metavar="DIR",
        help="Keep an audit log of decisions and answers.",
        rich_help_panel=_PANEL_AUDIT,
    ),
]
AuditFsync = Annotated[
    Fsync,
    typer.Option(help="When records are forced to the disk.", rich_help_panel=_PANEL_AUDIT),
]
AuditKeyFile = Annotated[
    Path | None,
    typer.Option(
        parser=_path, metavar="FILE", help="A key for the chain of records.", rich_help_panel=_PANEL_AUDIT
    ),
]
AuditPrompts = Annotated[
    bool, typer.Option(help="Write the text of prompts too.", rich_help_panel=_PANEL_AUDIT)
]
AuditOnFailure = Annotated[
    OnFailure,
    typer.Option(
        help="What to do with requests while the log cannot be written.", rich_help_panel=_PANEL_AUDIT
    ),
]
Reflection = Annotated[
    bool, typer.Option(help="Let clients read the contract.", rich_help_panel=_PANEL_NETWORK)
]
MaxNumSeqs = Annotated[
    int, typer.Option(min=1, max=1024, help="Sequences that share a batch.", rich_help_panel=_PANEL_LIMITS)
]
MaxModelLen = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Tokens of prompt and completion together; by default what the model allows.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
Rows = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND=NUMBER",
        help="How many edits, rules, bans or watches a sequence has room for at each site, such as bans=64, "
        "and how many conditions; by default edits=32, rules=8, bans=32, watches=64, conditions=32. Again "
        "for another.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
QueueLimit = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Sequences that may wait.", rich_help_panel=_PANEL_LIMITS)
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=NUMBER",
        help="What a caller may have, such as tenant.tokens_per_minute=60000. Again for another.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
Stall = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=3600.0,
        help="Seconds that the event loop may be stuck before /livez says no; 0 is for ever.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
Grace = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=3600.0,
        help="Seconds that running requests may take to end.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
SteerFirstToken = Annotated[
    bool,
    typer.Option(
        "--steer-first-token",
        help="Let edits and rules move a text's first token also where it is the model's own BOS.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
ReadFirstToken = Annotated[
    bool,
    typer.Option(
        "--read-first-token",
        help="Let conditions and contrasts read that token too.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
ReadyFile = Annotated[
    Path | None,
    typer.Option(
        parser=_path, metavar="FILE", help="Written as JSON (target, metrics_port, pid) once it serves."
    ),
]
LogLevel = Annotated[Level, typer.Option(case_sensitive=False, help="What the log tells on standard error.")]
