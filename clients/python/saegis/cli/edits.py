"""Edits and watches as they are written on the command line and in the chat: `123=5`, `poison=2max`."""

import math
import re
from collections.abc import Callable, Iterable

from saegis import Edit, FeatureRef, Unit, Watch, add, ban, cap, clamp, feature, scale, watch

_UNITS: dict[str, Unit] = {"": "feature", "max": "max_activation", "norm": "norm_fraction"}
_VALUE = re.compile(r"(?P<number>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?(?:inf|nan))(?P<unit>max|norm)?", re.I)
#: Operations whose value may have a unit, by the name of their option.
_MEASURED: dict[str, Callable[..., Edit]] = {"clamp": clamp, "add": add, "cap": cap}
OPERATIONS = (*_MEASURED, "scale", "ban")


class EditSyntaxError(ValueError):
    """An edit that is not written as it should be; the message says how."""


def parse_target(text: str, sae: str = "") -> FeatureRef:
    """A feature by index (`123`) or by its exact label. Raises EditSyntaxError for an empty one."""
    name = text.strip()
    if not name:
        raise EditSyntaxError(f"{text!r} names no feature; write an index or a label")
    return feature(int(name) if name.isdecimal() else name, sae=sae)


def parse_edit(operation: str, text: str, *, sae: str = "", site: str = "") -> Edit:
    """One edit from `TARGET=VALUE`.

    VALUE is a number in feature units, `2max` for multiples of the feature's recorded maximum, or
    `0.1norm` for fractions of the activation's norm; a ban's `=STRENGTH` may be left out. A label may
    contain `=`: the last one counts. Raises EditSyntaxError.
    """
    if operation not in OPERATIONS:
        raise EditSyntaxError(f"{operation!r} is no operation; there are {', '.join(OPERATIONS)}")
    name, found, value = text.rpartition("=")
    if operation == "ban" and (not found or _VALUE.fullmatch(value.strip()) is None):
        return ban(parse_target(text, sae), site=site)
    if not found:
        raise EditSyntaxError(f"{text!r} has no value; write TARGET=VALUE, such as 12=3.5")
    number, unit = _parse_value(value)
    target = parse_target(name, sae)
    if operation in _MEASURED:
        return _MEASURED[operation](target, number, unit=unit, site=site)
    if unit != "feature":
        raise EditSyntaxError(f"{text!r}: {operation} takes a plain number without a unit")
    return scale(target, number, site=site) if operation == "scale" else ban(target, number, site=site)


def parse_edits(
    written: Iterable[tuple[str, Iterable[str] | None]], *, sae: str = "", site: str = ""
) -> list[Edit]:
    """Edits from pairs of an operation's name and what was written for it. Raises EditSyntaxError."""
    return [parse_edit(name, text, sae=sae, site=site) for name, texts in written for text in texts or ()]


def parse_watches(texts: Iterable[str] | None, *, sae: str = "", site: str = "") -> list[Watch]:
    """Watches from targets. Raises EditSyntaxError."""
    return [watch(parse_target(text, sae), site=site) for text in texts or ()]


def split_strength(text: str) -> tuple[str, float]:
    """The words and the strength of `WORDS[=STRENGTH]`, 0 where it is left out. Raises EditSyntaxError."""
    edit = parse_edit("ban", text)
    words, found, value = text.rpartition("=")
    if not found or _VALUE.fullmatch(value.strip()) is None:
        words = text
    return words.strip(), edit.value or 0.0


def describe_edit(edit: Edit) -> str:
    """An edit as it would be written, such as `clamp 12=3.5`."""
    name = edit.target.selector if isinstance(edit.target, FeatureRef) else "a direction"
    suffix = next((short for short, unit in _UNITS.items() if unit == edit.unit), "")
    value = "" if edit.value is None else f"={edit.value:g}{suffix}"
    return f"{edit.operation} {name}{value}"


def _parse_value(text: str) -> tuple[float, Unit]:
    match = _VALUE.fullmatch(text.strip())
    if match is None:
        raise EditSyntaxError(f"{text!r} is no value; write a number such as 3.5, 2max or 0.1norm")
    try:
        number = float(match["number"])
    except ValueError:
        raise EditSyntaxError(f"{text!r} is no value; {match['number']!r} is not a number") from None
    if not math.isfinite(number):
        raise EditSyntaxError(f"{text!r} is no value; it must be finite")
    return number, _UNITS[(match["unit"] or "").lower()]
