"""Settings: each option of a command that serves, from its flag, else the environment, else a file."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from saegis.cli.output import USAGE, fail, own_command
from saegis_server.cli.serve.options import to_path

if TYPE_CHECKING:
    from saegis_server.policy.schema.yaml_text import Place

PREFIX = "SAEGIS_"
#: Options of a command that are no settings.
_NO_SETTINGS = frozenset(("config", "json", "help"))
#: Variables of the prefix that others read: commands that ask a server, and the compiler's cache.
_OTHERS = frozenset(f"{PREFIX}{name}" for name in ("SERVER", "TOKEN", "CA", "CERT", "KEY", "COMPILE_CACHE"))
#: What Kubernetes sets for a Service whose name begins with the prefix.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
_LINK = re.compile(r"(tcp|udp|sctp)://")
#: The largest file, in bytes.
_LARGEST = 128 * 1024
#: Where a context keeps the places of the values from its file, by option.
_PLACES = "saegis.settings"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its key in a file, the value that it has, and where that comes from."""

    key: str
    value: object
    source: str


class SettingsCommand(TyperCommand):
    """A command whose options are settings: a flag wins, then the environment, then the file of --config.

    The key of a setting in a file is its flag without the dashes; its variable is the key in capitals, with
    the prefix. Values mean the same everywhere. An unknown key or variable ends the command with the nearest
    name.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for option in self.params:
            if option.name not in _NO_SETTINGS - {"config"}:
                option.envvar, option.show_envvar = variable(key(option)), False  # type: ignore[attr-defined]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options. What is wrong with one is told with where it comes from."""
        try:
            left = super().parse_args(ctx, args)
        except typer.BadParameter as error:
            name = getattr(error.param, "name", None)
            if name is not None and (source := _source(ctx, error.param)) not in ("flag", "default"):
                error.message = f"{error.message} (from {source}){_about_links(error.param)}"
            raise
        if not ctx.resilient_parsing:
            _refuse_unknown_variables(self.params)
        return left


def key(option: Any) -> str:
    """The key of an option in a file: its flag without the dashes."""
    return str(option.opts[0]).removeprefix("--")


def variable(key: str) -> str:
    """The environment variable of a key."""
    return PREFIX + key.upper().replace("-", "_")


def declared(command: Any) -> Iterator[Any]:
    """The options of a command that are settings, in the order of its help."""
    return (option for option in command.params if option.name not in _NO_SETTINGS)


def effective(ctx: typer.Context) -> Iterator[Setting]:
    """Every setting of a running command."""
    for option in declared(ctx.command):
        yield Setting(key(option), ctx.params[option.name], _source(ctx, option))


def _source(ctx: Any, option: Any) -> str:
    """Where the value of an option comes from, in words."""
    source = ctx.get_parameter_source(option.name)
    if source is None or source.name == "DEFAULT":
        return "default"
    if source.name == "ENVIRONMENT":
        return variable(key(option))
    if source.name == "DEFAULT_MAP":
        return str(ctx.meta[_PLACES][option.name])
    return "flag"


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take what the file says as the defaults of the command's other options."""
    if path is None or ctx.resilient_parsing:
        return path
    options = {key(option): option for option in declared(ctx.command)}
    values: dict[str, str | list[str]] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    for name, value, place in _entries(path):
        option = options.get(name)
        if option is None:
            problems.append(f"{place}: there is no setting {name!r}{_nearest(name, options)}")
            continue
        try:
            texts = list(_texts(value, option.multiple and "=" in (option.metavar or "")))
            if not option.multiple and isinstance(value, list | dict):
                raise ValueError("has a single value")
        except ValueError as error:
            problems.append(f"{place}: {name}: {error}")
            continue
        values[option.name] = texts if option.multiple else texts[0]
        places[option.name] = place
    if problems:
        hint = f"{own_command()} serve --help has every setting; a key is a flag without its dashes"
        raise fail(f"{path} is no configuration", hint, USAGE, problems)
    ctx.default_map = values
    ctx.meta[_PLACES] = places
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        parser=to_path,
        metavar="FILE",
        callback=_read_config,
        is_eager=True,
        help="Settings in YAML or TOML, which flags and the environment override.",
    ),
]


def _entries(path: Path) -> Iterator[tuple[str, object, str]]:
    """The keys of a file with their values and places; ends the command if it cannot be read."""
    from saegis_server.policy.errors import PolicyError

    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise fail(f"{path} is no configuration", "name a file that ends in .yaml, .yml or .toml", USAGE)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        yield from _of_toml(data, path) if path.suffix == ".toml" else _of_yaml(data, path)
    except PolicyError as error:
        problems = [str(problem) for problem in error.problems]
        raise fail(f"{path} is no configuration", "mend the file", USAGE, problems) from error
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise fail(f"{path} cannot be read: {reason}", "name another file with --config", USAGE) from error


def _of_toml(data: bytes, path: Path) -> Iterator[tuple[str, object, str]]:
    """The same of TOML, whose reader tells no lines. Raises ValueError."""
    for name, value in tomllib.loads(data.decode("utf-8")).items():
        yield name, value, str(path)


def _of_yaml(data: bytes, path: Path) -> Iterator[tuple[str, object, str]]:
    """The same of YAML. Raises SyntaxProblem, and ValueError where it is no map."""
    from saegis_server.policy.schema.yaml_text import read_yaml

    document = read_yaml(data, str(path))
    if not isinstance(document.value, dict):
        raise ValueError("it must be a map of settings")
    for name, value in document.value.items():
        yield name, value, f"{path}:{document.line((name,))}"


def _texts(value: object, named: bool) -> Iterator[str]:
    """The texts that a value would be as flags. named: whether NAME=VALUE may be an entry of a map.

    Raises ValueError for a value that has no such texts.
    """
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                raise ValueError("holds a list or map where there must be a single value")
            yield from _texts(item, named)
    elif isinstance(value, dict):
        if not named:
            raise ValueError("is no map")
        for place, item in _leaves((), value):
            yield f"{'.'.join(map(str, place))}={','.join(_texts(item, named=False))}"
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, str | int | float):
        yield str(value)
    elif value is None:
        raise ValueError("has no value; write one, or leave the key out")
    else:
        raise ValueError("must be text, a number, true or false")


def _leaves(place: Place, value: object) -> Iterator[tuple[Place, object]]:
    """What lies at the ends of a map of maps, with the keys that lead there."""
    if not isinstance(value, dict):
        yield place, value
        return
    for name, item in value.items():
        yield from _leaves((*place, name), item)


def _refuse_unknown_variables(options: Sequence[Any]) -> None:
    """End the command if a variable of the prefix is nobody's."""
    known = {variable(key(option)) for option in options} | _OTHERS
    unknown = [
        name
        for name, value in os.environ.items()
        if name.startswith(PREFIX)
        and name not in known
        and not (_SERVICE_LINK.search(name) or _LINK.match(value))
    ]
    if unknown:
        problems = [f"there is no {name}{_nearest(name, known)}" for name in sorted(unknown)]
        raise fail("the environment has settings that do not exist", "unset them", USAGE, problems)


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _about_links(option: Any) -> str:
    """Advice where Kubernetes has set the variable of an option."""
    if not _LINK.match(os.environ.get(variable(key(option)), "")):
        return ""
    return "; Kubernetes sets it for a Service of that name: put enableServiceLinks: false into the pod"
