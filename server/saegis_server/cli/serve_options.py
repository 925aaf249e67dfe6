"""The options of `saegis serve`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

_PANEL_LIMITS = "Limits"
_PANEL_NETWORK = "Network"


class Compile(enum.StrEnum):
    """When to compile the forward pass."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


Model = Annotated[
    str | None,
    typer.Option(metavar="PATH_OR_HUB_ID", help="The language model; by default the reference model."),
]
Saes = Annotated[list[str] | None, typer.Option(metavar="PATH_OR_HUB_ID", help="An SAE. Again for another.")]
Sites = Annotated[
    list[str] | None,
    typer.Option(metavar="SITE", help="Where the SAE belongs, such as layers.12.resid_post."),
]
Name = Annotated[str | None, typer.Option(help="What the model is called in answers.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16; auto is float32 on a CPU.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
CompileWhen = Annotated[
    Compile, typer.Option(help="Compile the forward pass; auto does where a C++ compiler is found.")
]
Host = Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_PANEL_NETWORK)]
Port = Annotated[
    int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_PANEL_NETWORK)
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
TlsCert = Annotated[Path | None, typer.Option(help="PEM certificate chain.", rich_help_panel=_PANEL_NETWORK)]
TlsKey = Annotated[Path | None, typer.Option(help="PEM private key.", rich_help_panel=_PANEL_NETWORK)]
ClientCa = Annotated[
    Path | None,
    typer.Option(help="PEM authorities; clients then need a certificate.", rich_help_panel=_PANEL_NETWORK),
]
Reflection = Annotated[
    bool, typer.Option(help="Let clients read the contract.", rich_help_panel=_PANEL_NETWORK)
]
MaxRunning = Annotated[
    int, typer.Option(min=1, help="Sequences that share a batch.", rich_help_panel=_PANEL_LIMITS)
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Tokens of prompt and completion together; by default what the model allows.",
        rich_help_panel=_PANEL_LIMITS,
    ),
]
QueueLimit = Annotated[
    int, typer.Option(min=0, help="Sequences that may wait.", rich_help_panel=_PANEL_LIMITS)
]
Grace = Annotated[
    float,
    typer.Option(
        min=0.0, help="Seconds that running requests may take to end.", rich_help_panel=_PANEL_LIMITS
    ),
]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Written as JSON (target, metrics_port, pid) once it serves.")
]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
