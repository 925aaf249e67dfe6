"""Edits and watches as written on the command line and in the chat: `123=5`, `poison=2max`.

If a label names several features, the best of them is taken and a note says so. In a policy and in a request
over the API a label of several features is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Protocol, TypeVar

from saegis import Direction, Edit, FeatureRef, SaegisError, Unit, Watch, direction, feature, watch
from saegis.cli.output import USAGE, fail, notes
from saegis.steering import WRITTEN

if TYPE_CHECKING:
    from saegis import Client

_UNITS: dict[str, Unit] = {"": "feature", "max": "max_activation", "norm": "norm_fraction"}
_NUMBER = r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?|[-+]?(?:inf|nan)"
_VALUE = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>max|norm)?", re.I)
#: What stands right of a redirect's last `=`. What can be read as one of its numbers is none of the label.
_REDIRECTION = re.compile(
    rf"(?P<to>(?:(?!:(?:{_NUMBER})(?:max)?(?::|$)).)*):(?P<factor>(?:{_NUMBER})(?:max)?)"
    rf"(?::(?P<strength>{_NUMBER})(?::(?P<threshold>{_NUMBER}))?)?",
    re.I,
)
#: Several indices as the target of an edit, and what follows them.
_INDICES = re.compile(r"\s*(\d+(?:\s*,\s*\d+)+)\s*(=.*)?", re.S)
#: What stands before the name or digest of a direction, with a colon.
_DIRECTION = "direction"
#: How the value of an operation that also writes another feature is written.
_TO = "TO:FACTOR[:STRENGTH[:THRESHOLD]]"


@dataclass(frozen=True, slots=True)
class Form:
    """How an operation is written. make: the function that makes its edit. value: the name of its value, or
    empty. is_optional, has_unit: whether the value may be left out or have a unit. has_target: whether it
    also writes another feature. help: what it does.
    """

    make: Callable[..., Edit]
    value: str
    is_optional: bool
    has_unit: bool
    has_target: bool
    help: str

    @property
    def metavar(self) -> str:
        """The form in help texts, such as `TARGET[=STRENGTH]`."""
        value = self.value and f"={self.value}"
        return f"TARGET[{value}]" if value and self.is_optional else f"TARGET{value}"


def _form_of(make: Callable[..., Edit], help: str) -> Form:
    """The form that follows from the parameters of a function such as `saegis.clamp`."""
    _, second, *rest = signature(make).parameters.values()
    name = "" if second.kind is Parameter.KEYWORD_ONLY else second.name.upper()
    named = {parameter.name for parameter in rest}
    has_target = "to" in named
    is_optional = second.default is not Parameter.empty
    return Form(make, _TO if has_target else name, is_optional, "unit" in named, has_target, help)


OPERATIONS = {name: _form_of(make, help) for name, (make, help) in WRITTEN.items()}


class EditSyntaxError(ValueError):
    """An edit that is malformed; the message says how to write it."""


class Labelled(Protocol):
    """A labelled feature, as a search returns it."""

    @property
    def sae(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def precision(self) -> float | None: ...


#: Finds features by the words of a label and an SAE's id, best first.
Search = Callable[[str, str], Sequence[Labelled]]
EditOrWatch = TypeVar("EditOrWatch", Edit, Watch)


@contextmanager
def edit_options(hint: str) -> Iterator[None]:
    """End the command with a usage error for a malformed edit in the block."""
    try:
        yield
    except EditSyntaxError as error:
        raise fail(str(error), hint, USAGE) from error


def parse_target(text: str, sae: str = "") -> FeatureRef | Direction:
    """A feature as `parse_feature` reads it, or `direction:` and the name or digest of one that the server
    keeps. Raises EditSyntaxError for an empty text."""
    kind, colon, name = text.strip().partition(":")
    if not colon or kind != _DIRECTION:
        return parse_feature(text, sae)
    if not name:
        raise EditSyntaxError(f"{text!r} names no direction; write its name or digest after the colon")
    return direction(name)


def parse_feature(text: str, sae: str = "") -> FeatureRef:
    """A feature by index (`123`) or by its exact label. Raises EditSyntaxError for an empty text."""
    name = text.strip()
    if not name:
        raise EditSyntaxError(f"{text!r} names no feature; write an index or a label")
    return feature(int(name) if name.isdecimal() else name, sae=sae)


def parse_edit(operation: str, text: str, *, sae: str = "", site: str = "") -> Edit:
    """One edit from `TARGET=VALUE`, or a redirect from `TARGET=TO:FACTOR[:STRENGTH[:THRESHOLD]]`.

    VALUE is a number in feature units, `2max` for multiples of the feature's recorded maximum, or
    `0.1norm` for fractions of the activation's norm; a ban's `=STRENGTH` may be left out. A FACTOR such as
    `1max` has its THRESHOLD in the same unit. A label may contain `=`: the last `=` separates the value.
    Raises EditSyntaxError.
    """
    if operation not in OPERATIONS:
        raise EditSyntaxError(f"{operation!r} is no operation; there are {', '.join(OPERATIONS)}")
    form = OPERATIONS[operation]
    if form.has_target:
        return _parse_redirect(form, text, sae, site)
    name, equals, value = text.rpartition("=")
    has_value = bool(form.value and equals) and _VALUE.fullmatch(value.strip()) is not None
    if form.is_optional and not has_value:
        return form.make(parse_target(text, sae), site=site)
    if not equals:
        raise EditSyntaxError(f"{text!r} has no value; write TARGET=VALUE, such as 12=3.5")
    number, unit = _parse_value(value)
    target = parse_target(name, sae)
    if form.has_unit:
        return form.make(target, number, unit=unit, site=site)
    if unit != "feature":
        raise EditSyntaxError(f"{text!r}: {operation} takes a plain number without a unit")
    return form.make(target, number, site=site)


def _parse_redirect(form: Form, text: str, sae: str, site: str) -> Edit:
    name, _, right = text.rpartition("=")
    match = _REDIRECTION.fullmatch(right.strip())
    if match is None:
        raise EditSyntaxError(f"{text!r} is no redirect; write TARGET={form.value}, such as 12=7:1.5")
    factor, unit = _parse_value(match["factor"])
    further = {
        key: _parse_value(match[key])[0] for key in ("strength", "threshold") if match[key] is not None
    }
    to = parse_target(match["to"], sae)
    return form.make(parse_target(name, sae), factor, to=to, unit=unit, site=site, **further)


def parse_edits(
    written: Iterable[tuple[str, Iterable[str] | None]], *, sae: str = "", site: str = ""
) -> list[Edit]:
    """Edits from pairs of an operation's name and its texts, in each of which several indices may stand as
    the target, as `12,15,40=3.5`. Raises EditSyntaxError."""
    return [
        parse_edit(name, text, sae=sae, site=site)
        for name, texts in written
        for several in texts or ()
        for text in _one_by_one(several)
    ]


def _one_by_one(text: str) -> list[str]:
    """`12,15=3` as `12=3` and `15=3`; a text whose target is not several indices as it is."""
    match = _INDICES.fullmatch(text)
    return [text] if match is None else [f"{index.strip()}{match[2] or ''}" for index in match[1].split(",")]


def parse_watches(texts: Iterable[str] | None, *, sae: str = "", site: str = "") -> list[Watch]:
    """Watches from targets. Raises EditSyntaxError."""
    return [watch(parse_target(text, sae), site=site) for text in texts or ()]


def split_strength(text: str) -> tuple[str, float]:
    """The words and the strength of `WORDS[=STRENGTH]`, 0 if it is left out. Raises EditSyntaxError."""
    edit = parse_edit("ban", text)
    words, equals, value = text.rpartition("=")
    if not equals or _VALUE.fullmatch(value.strip()) is None:
        words = text
    return words.strip(), edit.value or 0.0


def describe_edit(edit: Edit) -> str:
    """An edit as it would be written, such as `clamp 12=3.5`."""
    suffix = next((short for short, unit in _UNITS.items() if unit == edit.unit), "")
    value = "" if edit.value is None else f"{edit.value:g}{suffix}"
    if edit.redirect is not None:
        to = edit.redirect
        further = [f"{to.strength:g}", f"{to.threshold:g}"] if to.threshold else [f"{to.strength:g}"]
        value = ":".join([_shown(to.target), value, *(further if to.threshold or to.strength else ())])
    return f"{edit.operation} {_shown(edit.target)}{value and '='}{value}"


def _shown(target: FeatureRef | Direction) -> str:
    if isinstance(target, FeatureRef):
        return str(target.selector)
    reference = target.name or target.digest
    return f"{_DIRECTION}:{reference}" if reference else "a direction"


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


def server_search(client: Client) -> Search:
    """A search by the server. If the server refuses it, nothing is found; the request itself fails later."""

    def search(words: str, sae: str) -> Sequence[Labelled]:
        try:
            return client.search_features(words, sae=sae, page_size=100).features
        except SaegisError:
            return ()

    return search


def with_best_features(requested: Sequence[EditOrWatch], search: Search) -> list[EditOrWatch]:
    """The edits or watches, with each label of several features replaced by the best of them."""
    return [_with_best(edit, search) for edit in requested]


def _with_best(edit: EditOrWatch, search: Search) -> EditOrWatch:
    if isinstance(edit, Edit) and edit.redirect is not None:
        to = edit.redirect
        edit = replace(edit, redirect=replace(to, target=_best(to.target, search)))
    return replace(edit, target=_best(edit.target, search))


def _best(target: FeatureRef | Direction, search: Search) -> FeatureRef | Direction:
    return best_feature(target, search) if isinstance(target, FeatureRef) else target


def best_feature(target: FeatureRef, search: Search) -> FeatureRef:
    """The feature that a label fits best if it names several of one SAE, with a note; else the target."""
    label = target.selector
    if isinstance(label, int):
        return target
    features = search(label, target.sae)
    alike = [candidate for candidate in features if candidate.label == label]
    alike = alike or [candidate for candidate in features if candidate.label.casefold() == label.casefold()]
    if len(alike) < 2 or len({candidate.sae for candidate in alike}) > 1:
        return target
    best, *others = alike
    left = ", ".join(map(_named, others))
    notes().print(
        f"{len(alike)} features are labelled {label!r}: taking {_named(best)}, not {left}",
        style="yellow",
        markup=False,
        soft_wrap=True,
    )
    return FeatureRef(best.index, target.sae)


def _named(feature: Labelled) -> str:
    return str(feature.index) + ("" if feature.precision is None else f" (precision {feature.precision:.2f})")
