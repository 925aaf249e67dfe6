"""Options that several commands share."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any, TypeAlias

import typer

from saegis.cli.edits import OPERATIONS

_SAMPLING = "Sampling"
_STEERING = "Steering"
#: What was written for each operation, by its name.
Written: TypeAlias = tuple[tuple[str, list[str] | None], ...]


def _edit(name: str) -> Any:
    form = OPERATIONS[name]
    return typer.Option(
        f"--{name.replace('_', '-')}", metavar=form.metavar, help=form.help, rich_help_panel=_STEERING
    )


def editing(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each operation that can be written, in the place of its `written`."""
    edits = [
        Parameter(
            name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[list[str] | None, _edit(name)]
        )
        for name in OPERATIONS
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        written = tuple((name, given.pop(name)) for name in OPERATIONS)
        command(**given, written=written)

    together: list[Parameter] = []
    for name, each in signature(command, eval_str=True).parameters.items():
        together += edits if name == "written" else [each.replace(kind=Parameter.KEYWORD_ONLY)]
    run.__signature__ = signature(command).replace(parameters=together)  # type: ignore[attr-defined]
    return run


Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Sae = Annotated[
    str,
    typer.Option(
        "--sae-id", metavar="ID", help="The SAE that features belong to; may be left out where there is one."
    ),
]

Clamp = Annotated[list[str] | None, _edit("clamp")]
Ban = Annotated[list[str] | None, _edit("ban")]
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
