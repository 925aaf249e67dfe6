"""Options that several commands share, alone or in groups that a command takes as one value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, make_dataclass
from functools import partial, wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from saegis.cli.edits import OPERATIONS
from saegis.cli.output import USAGE, fail

if TYPE_CHECKING:
    from saegis import GenerationOptions
    from saegis import Image as Picture

_sampling = partial(typer.Option, rich_help_panel="Sampling")
_steering = partial(typer.Option, rich_help_panel="Steering")
_SAE = {"metavar": "ID", "help": "The SAE that features belong to; may be left out where there is one."}


def _edit(name: str) -> Any:
    form = OPERATIONS[name]
    return _steering(f"--{name.replace('_', '-')}", metavar=form.metavar, help=form.help)


Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Sae = Annotated[str, typer.Option("--sae-id", **_SAE)]

Clamp = Annotated[list[str] | None, _edit("clamp")]
Ban = Annotated[list[str] | None, _edit("ban")]
BanMatching = Annotated[
    list[str] | None,
    _steering(
        metavar="WORDS[=STRENGTH]", help="Ban every feature that 'saegis features search WORDS' finds."
    ),
]
Watch = Annotated[
    list[str] | None,
    _steering(metavar="TARGET", help="Report a feature's value at each generated token."),
]
Image = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="A picture (PNG, JPEG or WebP) to show the model before the text. Again for another.",
    ),
]
EditSite = Annotated[
    str, _steering(metavar="SITE", help="Where the edits apply; by default where the SAE belongs.")
]
EditSae = Annotated[str, _steering("--sae-id", **_SAE)]

Temperature = Annotated[float | None, _sampling(help="0 is greedy; the server's default is 1.")]
TopP = Annotated[float | None, _sampling(help="Choose among the likeliest tokens that sum to this share.")]
TopK = Annotated[int | None, _sampling(help="Choose among this many likeliest tokens.")]
MinP = Annotated[
    float | None, _sampling(help="Leave out tokens less likely than this share of the likeliest.")
]
MaxTokens = Annotated[int, _sampling(help="Most tokens to generate.")]
Seed = Annotated[int | None, _sampling(help="The same seed gives the same text.")]
Stop = Annotated[list[str] | None, _sampling(metavar="TEXT", help="End where this text appears.")]


def pictures(files: list[Path] | None) -> list[Picture]:
    """The pictures of --image. Ends the command for a file that cannot be read."""
    from saegis import image

    found = []
    for file in files or ():
        try:
            found.append(image(file))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise fail(f"{file} cannot be read as a picture: {reason}", "", USAGE) from error
    return found


Group = TypeVar("Group")


def _with_operations(group: type[Group]) -> type[Group]:
    """A class decorator that adds an option for each operation that can be written on the command line."""
    options = [(name, Annotated[list[str] | None, _edit(name)], None) for name in OPERATIONS]
    return make_dataclass(group.__name__, options, bases=(group,), frozen=True)


@_with_operations
class Edits:
    """The edits of a request as written, as a group of options."""

    def by_operation(self) -> Iterable[tuple[str, list[str] | None]]:
        """Each operation with its texts."""
        return ((name, getattr(self, name)) for name in OPERATIONS)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and where the answer ends, as a group of options."""

    max_tokens: MaxTokens = 128
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    seed: Seed = None
    stop: Stop = None

    def requested(self) -> GenerationOptions:
        """As options of a request."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": self.stop or [],
        }


@dataclass(frozen=True)
class Readouts:
    """What is shown token by token, as a group of options."""

    read_prompt: Annotated[
        bool,
        _steering("--read-prompt", help="Show what was read token by token, and of the prompt too."),
    ] = False
    read_moves: Annotated[
        bool,
        _steering(
            "--read-moves",
            help="Show token by token how far each was moved at each site, as a share of its norm.",
        ),
    ] = False

    @property
    def by_token(self) -> bool:
        """Whether anything is shown token by token."""
        return self.read_prompt or self.read_moves

    def require_anything(self, watched: bool) -> None:
        """End the command if there is nothing that could be read of the prompt."""
        if self.read_prompt and not (watched or self.read_moves):
            told = "--read-prompt has nothing to read: no feature is watched, and no moves are asked for"
            raise fail(told, "add --watch TARGET or --read-moves", USAGE)


def _options(group: Any) -> Iterator[Parameter]:
    """The options of a group and of the groups in it."""
    for member in signature(group, eval_str=True).parameters.values():
        if is_dataclass(member.annotation):
            yield from _options(member.annotation)
        else:
            yield member


def _filled(group: Any, values: Mapping[str, Any]) -> Any:
    """A group with what its options have among these values, and with its groups filled likewise."""
    members = signature(group, eval_str=True).parameters
    filled = {
        name: _filled(member.annotation, values) if is_dataclass(member.annotation) else values[name]
        for name, member in members.items()
        if is_dataclass(member.annotation) or name in values
    }
    return group(**filled)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command decorator that replaces each parameter whose type is a group by the group's options.

    A group is a dataclass whose fields are options, with their defaults, or further groups. If the command
    itself declares an option of a group, its declaration is used, and the group gets the value unless it is
    None.
    """
    declared = signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in declared.items()
        if is_dataclass(parameter.annotation)
    }
    own = [name for name in declared if name not in groups]

    @wraps(command)
    def run(**values: Any) -> None:
        arguments = {name: values[name] for name in own}
        given = {name: value for name, value in values.items() if name not in own or value is not None}
        arguments |= {name: _filled(group, given) for name, group in groups.items()}
        command(**arguments)

    parameters: list[Parameter] = []
    for name, parameter in declared.items():
        if name in groups:
            parameters += [option for option in _options(groups[name]) if option.name not in own]
        else:
            parameters.append(parameter)
    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = signature(command).replace(parameters=keywords)  # type: ignore[attr-defined]
    return run
