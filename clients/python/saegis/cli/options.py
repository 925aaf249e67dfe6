"""Options that several commands share."""

from typing import Annotated

import typer

_SAMPLING = "Sampling"
_STEERING = "Steering"

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
