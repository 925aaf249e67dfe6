"""Options that several commands share."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_CONNECTION = "Connection"
_SAMPLING = "Sampling"
_STEERING = "Steering"

TOKEN_VARIABLE = "SAEGIS_TOKEN"  # noqa: S105 - the name of a variable


class DtypeName(StrEnum):
    """The dtypes that a model runs in; auto leaves it to the device and the checkpoint."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def _token(file: str | None) -> str | None:
    """The token in a file, or in the environment where no file is named."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {_cause(error)}") from None
    if not token or len(token.split()) > 1:
        raise typer.BadParameter(f"{file} holds no token; saegis token new makes one")
    return token


def _cause(error: OSError | UnicodeDecodeError) -> str:
    """Why, without a byte of the file."""
    return (error.strerror or "no reason given") if isinstance(error, OSError) else "it is not ASCII text"


Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="SAEGIS_SERVER",
        metavar="TARGET",
        help="Where the server listens: host:port, or unix:/path.",
        rich_help_panel=_CONNECTION,
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        callback=_token,
        metavar="FILE",
        help=f"File of the bearer token; without it {TOKEN_VARIABLE} in the environment.",
        rich_help_panel=_CONNECTION,
    ),
]
CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="PEM file of the authorities to trust. Your own certificate, where the server asks for one, and "
        "its key are the files in SAEGIS_CERT and SAEGIS_KEY.",
        rich_help_panel=_CONNECTION,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Reach a server that is not on this machine without encryption.",
        rich_help_panel=_CONNECTION,
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS", help="Deadline of the call; none by default.", rich_help_panel=_CONNECTION
    ),
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 ...")]
Dtype = Annotated[DtypeName, typer.Option(help="The model's dtype; auto is float32 on a CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Sae = Annotated[
    str,
    typer.Option(
        "--sae-id", metavar="ID", help="The SAE that features belong to; may be left out where there is one."
    ),
]

Clamp = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET=VALUE",
        help="Set a feature's value at every token. Again for another.",
        rich_help_panel=_STEERING,
    ),
]
Scale = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET=FACTOR",
        help="Multiply a feature's value: 0.5 turns it down.",
        rich_help_panel=_STEERING,
    ),
]
Add = Annotated[
    list[str] | None,
    typer.Option(metavar="TARGET=VALUE", help="Add to a feature's value.", rich_help_panel=_STEERING),
]
Cap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET=VALUE", help="Keep a feature from exceeding a value.", rich_help_panel=_STEERING
    ),
]
Ban = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET[=STRENGTH]",
        help="Keep a feature inactive; strength 0 removes it, more pushes against it.",
        rich_help_panel=_STEERING,
    ),
]
BanMatching = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WORDS[=STRENGTH]",
        help="Ban every feature that 'saegis features search WORDS' finds.",
        rich_help_panel=_STEERING,
    ),
]
Watch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TARGET",
        help="Report a feature's value at each generated token.",
        rich_help_panel=_STEERING,
    ),
]
EditSite = Annotated[
    str,
    typer.Option(
        metavar="SITE",
        help="Where the edits apply; by default where the SAE belongs.",
        rich_help_panel=_STEERING,
    ),
]
EditSae = Annotated[
    str,
    typer.Option(
        "--sae-id",
        metavar="ID",
        help="The SAE that features belong to; may be left out where there is one.",
        rich_help_panel=_STEERING,
    ),
]

Temperature = Annotated[
    float | None,
    typer.Option(help="0 is greedy; the server's default is 1.", rich_help_panel=_SAMPLING),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Choose among the likeliest tokens that sum to this share.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[
    int | None, typer.Option(help="Choose among this many likeliest tokens.", rich_help_panel=_SAMPLING)
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Leave out tokens less likely than this share of the likeliest.", rich_help_panel=_SAMPLING
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Most tokens to generate.", rich_help_panel=_SAMPLING)]
Seed = Annotated[
    int | None, typer.Option(help="The same seed gives the same text.", rich_help_panel=_SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="End where this text appears.", rich_help_panel=_SAMPLING),
]
