"""Groups of options: what a command that takes one is given, and where its own declaration holds."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from saegis.cli.edits import OPERATIONS
from saegis.cli.options import Edits, grouped


@dataclass(frozen=True)
class Box:
    """A group."""

    size: Annotated[int, typer.Option(min=1)] = 3
    place: Annotated[str, typer.Option("--at")] = "here"


@dataclass(frozen=True)
class Shelf:
    """A group with a group in it."""

    height: Annotated[int, typer.Option()] = 2
    box: Box = Box()


@grouped
def plain(name: str, *, box: Box, loud: bool = False) -> None:
    print(name, box, loud)


@grouped
def own(*, box: Box, place: Annotated[str | None, typer.Option("--own-place")] = None) -> None:
    print(box, place)


@grouped
def shelved(*, shelf: Shelf, place: Annotated[str | None, typer.Option("--own-place")] = None) -> None:
    print(shelf, place)


@pytest.mark.parametrize(
    ("command", "arguments", "printed"),
    [
        (plain, ["x"], f"x {Box()} False"),
        (plain, ["x", "--size", "5", "--loud", "--at", "there"], f"x {Box(5, 'there')} True"),
        (own, [], f"{Box()} None"),
        (own, ["--own-place", "mine"], f"{Box(3, 'mine')} mine"),
        (shelved, [], f"{Shelf()} None"),
        (shelved, ["--size", "5", "--height", "1", "--own-place", "x"], f"{Shelf(1, Box(5, 'x'))} x"),
    ],
)
def test_a_command_gets_its_group_as_one_value(command: object, arguments: list[str], printed: str) -> None:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    result = CliRunner().invoke(app, arguments)
    assert result.stdout.strip() == printed


def test_what_the_group_refuses_or_the_command_replaces_is_refused() -> None:
    for command, arguments in ((plain, ["x", "--size", "0"]), (own, ["--at", "there"])):
        app = typer.Typer()
        app.command()(command)
        assert CliRunner().invoke(app, arguments).exit_code == 2


def test_each_operation_that_can_be_written_is_an_option_of_the_edits() -> None:
    app = typer.Typer()

    @app.command()
    @grouped
    def steer(*, edits: Edits) -> None:
        print(list(edits.by_operation()))

    arguments = [word for name in OPERATIONS for word in (f"--{name.replace('_', '-')}", f"{name}=1")]
    result = CliRunner().invoke(app, arguments)
    assert result.stdout.strip() == str([(name, [f"{name}=1"]) for name in OPERATIONS])
    assert CliRunner().invoke(app, []).stdout.strip() == str([(name, None) for name in OPERATIONS])
