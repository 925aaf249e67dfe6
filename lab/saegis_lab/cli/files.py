"""The files that the commands of `saegis eval` read and write: shipped inputs and results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from json import dumps
from pathlib import Path

from saegis.cli.output import USAGE, fail, notes, plain


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
    """End the command before the measurement if its result could not be written."""
    for option, path in (("--out", out), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise fail(f"{option} {path}: there is no folder {path.parent}", "make it first", USAGE)
        if path is not None and path.is_dir():
            raise fail(f"{option} {path}: is a folder", "name a file in it", USAGE)
    if plot is not None and plot.suffix.lower() != ".png":
        raise fail(f"--plot {plot}: plots are PNG files", f"write --plot {plot.with_suffix('.png')}", USAGE)
    if plot is not None and find_spec("matplotlib") is None:
        raise fail("--plot: matplotlib is not installed", "pip install 'saegis-server[lab]'", USAGE)


def write_result(path: Path | None, result: object) -> None:
    """Write a result as JSON where a path is given, and say so."""
    if path is None:
        return
    text = dumps(plain(result), ensure_ascii=False, indent=2, allow_nan=False)
    write_or_show(path, text + "\n")
    note_written(path)


def write_or_show(path: Path, text: str) -> None:
    """Write a result; where that fails, print it rather than lose it, and end the command."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(text, flush=True)
        problem = f"{path} cannot be written: {error.strerror}"
        raise fail(problem, "what was to be written is on standard output") from error


def note_written(path: Path) -> None:
    """Say on standard error that a file was written."""
    notes().print(f"wrote {path}", style="dim", markup=False, soft_wrap=True)


def codes(text: str) -> tuple[str, ...]:
    """The language codes of a comma-separated list."""
    return tuple(code for code in (part.strip() for part in text.split(",")) if code)


def features_of(written: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The features, and the languages that a ban file says they were chosen from.

    Raises ValueError for text that is neither a ban file nor indices.
    """
    indices = [part.strip() for part in written.split(",")]
    if all(map(str.isdecimal, indices)):
        features = tuple(map(int, indices))
        if len(set(features)) < len(features):
            raise ValueError(f"--features {written}: a feature stands there twice")
        return features, ()
    if not Path(written).is_file():
        raise ValueError(f"--features {written}: no such file, and not indices such as 17,99")
    from saegis_lab.evaluation.experiment import BanFile

    ban = BanFile.load(Path(written))
    return ban.features, ban.chosen_from


def strengths_of(text: str) -> list[float]:
    """The strengths of a comma-separated list. Raises ValueError."""
    numbers = []
    for part in text.split(","):
        try:
            number = float(part)
        except ValueError:
            raise ValueError(f"--strengths: {part!r} is no number") from None
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"--strengths: {part!r} must be finite and at least 0")
        numbers.append(number)
    if len(set(numbers)) < len(numbers):
        raise ValueError("--strengths: one stands there twice")
    return numbers
