"""Edits and watches as they are written on the command line and in the chat: `123=5`, `poison=2max`."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import Parameter, signature

from saegis import Edit, FeatureRef, Unit, Watch, feature, watch
from saegis.steering import WRITTEN

_UNITS: dict[str, Unit] = {"": "feature", "max": "max_activation", "norm": "norm_fraction"}
_VALUE = re.compile(r"(?P<number>[-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?(?:inf|nan))(?P<unit>max|norm)?", re.I)


@dataclass(frozen=True, slots=True)
class Form:
    """How an operation is written: what makes its edit, and the name of its value (empty: it has none).

    is_optional, has_unit: of the value, whether it may be left out, and have a unit. help: what it does.
    """

    make: Callable[..., Edit]
    value: str
    is_optional: bool
    has_unit: bool
    help: str

    @property
    def metavar(self) -> str:
        """As helps write it, such as `TARGET[=STRENGTH]`."""
        value = self.value and f"={self.value}"
        return f"TARGET[{value}]" if value and self.is_optional else f"TARGET{value}"


def _form_of(make: Callable[..., Edit], told: str) -> Form:
    """What the parameters of a function such as `saegis.clamp` say."""
    _, second, *rest = signature(make).parameters.values()
    name = "" if second.kind is Parameter.KEYWORD_ONLY else second.name.upper()
    has_unit = any(each.name == "unit" for each in rest)
    return Form(make, name, second.default is not Parameter.empty, has_unit, told)


OPERATIONS = {name: _form_of(make, told) for name, (make, told) in WRITTEN.items()}


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
    form = OPERATIONS[operation]
    name, found, value = text.rpartition("=")
    has_value = bool(form.value and found) and _VALUE.fullmatch(value.strip()) is not None
    if form.is_optional and not has_value:
        return form.make(parse_target(text, sae), site=site)
    if not found:
        raise EditSyntaxError(f"{text!r} has no value; write TARGET=VALUE, such as 12=3.5")
    number, unit = _parse_value(value)
    target = parse_target(name, sae)
    if form.has_unit:
        return form.make(target, number, unit=unit, site=site)
    if unit != "feature":
        raise EditSyntaxError(f"{text!r}: {operation} takes a plain number without a unit")
    return form.make(target, number, site=site)


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
