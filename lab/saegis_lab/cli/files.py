"""What the commands of `saegis eval` read and write: shipped files by default, results, and their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from json import dumps
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from saegis.cli.output import USAGE, console, fail, notes, plain, print_json


def shipped(name: str, option: str) -> Path:
    """A file that comes with the reference model; ends the command where it is missing."""
    from saegis_server.reference import WEIGHTS

    path = WEIGHTS / "eval" / name
    if not path.is_file():
        raise fail(f"the reference model's {name} is not at {path}", f"give a file of your own with {option}")
    return path


@contextmanager
def inputs() -> Iterator[None]:
    """End the command with a usage error where a file, a scorer or an option's value is wrong."""
    from saegis_lab.records import InputFileError

    try:
        yield
    except InputFileError as error:
        raise fail(str(error), "see the command's --help for what the file must hold", USAGE) from error
    except ValueError as error:
        raise fail(str(error), "see the command's --help", USAGE) from error


def check_places(out: Path | None, plot: Path | None) -> None:
    """End the command, before the long work, where a result could not be written in the end."""
    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise fail(f"{option} {path}: there is no folder {path.parent}", "make it first", USAGE)
        if path is not None and path.is_dir():
            raise fail(f"{option} {path}: is a folder", "name a file in it", USAGE)
    if plot is not None and plot.suffix.lower() != ".png":
        raise fail(f"--plot {plot}: plots are PNG files", f"write --plot {plot.with_suffix('.png')}", USAGE)
    if plot is not None and find_spec("matplotlib") is None:
        raise fail("--plot: matplotlib is not installed", "pip install 'saegis-server[lab]'", USAGE)


def give(
    result: object,
    shown: Callable[[], Iterable[RenderableType]],
    plot: tuple[Path | None, Callable[[Path], None]],
    out: Path | None,
    json: bool,
) -> None:
    """Give what was measured: to the file `out` as JSON, as a plot to a file, and to standard output as JSON
    or else as it is `shown`. What is written is told on standard error."""
    write_result(out, result)
    path, draw = plot
    if path is not None:
        draw(path)
        tell_written(path)
    if json:
        print_json(result)
        return
    for part in shown():
        console().print(part, soft_wrap=isinstance(part, Text))


def write_result(path: Path | None, result: object) -> None:
    """Write a result as JSON where a path is given, and say so."""
    if path is None:
        return
    text = dumps(plain(result), ensure_ascii=False, indent=2, allow_nan=False)
    write_or_show(path, text + "\n")
    tell_written(path)


def write_or_show(path: Path, text: str) -> None:
    """Write what took long to measure; where that fails, show it rather than lose it, and end the command."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(text, flush=True)
        told = f"{path} cannot be written: {error.strerror}"
        raise fail(told, "what was to be written is on standard output") from error


def tell_written(path: Path) -> None:
    """Say on standard error that a file was written."""
    notes().print(f"wrote {path}", style="dim", markup=False, soft_wrap=True)


def codes(text: str) -> tuple[str, ...]:
    """The language codes of a comma-separated list."""
    return tuple(code for code in (each.strip() for each in text.split(",")) if code)


def strengths_of(text: str) -> list[float]:
    """The strengths of a comma-separated list. Raises ValueError."""
    found = []
    for each in text.split(","):
        try:
            number = float(each)
        except ValueError:
            raise ValueError(f"--strengths: {each!r} is no number") from None
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"--strengths: {each!r} must be finite and at least 0")
        found.append(number)
    if len(set(found)) < len(found):
        raise ValueError("--strengths: one stands there twice")
    return found
