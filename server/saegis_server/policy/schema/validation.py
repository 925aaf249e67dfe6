"""Validation: a document is checked against its schema; each problem names its line and key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from saegis_server.policy.errors import SchemaError
from saegis_server.policy.schema.policy import (
    DIGEST_PATTERN,
    DIRECTIONS_PATTERN,
    NAME_PATTERN,
    READING_TAG,
    REVISION_PATTERN,
    TAGS,
    All,
    Any_,
    Not,
    Reading,
)
from saegis_server.policy.schema.yaml_text import Document, Place, path_of
from saegis_server.problem import Problem

Model = TypeVar("Model", bound=BaseModel)

_TAGGED: Mapping[str, type[BaseModel]] = MappingProxyType(
    {TAGS["all"]: All, TAGS["any"]: Any_, TAGS["not"]: Not, READING_TAG: Reading}
)
_PATTERNS = {
    NAME_PATTERN: "up to 64 of a-z, 0-9, dot, dash and underscore, a letter or digit first and last",
    REVISION_PATTERN: "up to 64 of a-z, A-Z, 0-9, dot, dash, underscore and +, a letter or digit first",
    DIRECTIONS_PATTERN: "directions/NAME.safetensors",
    DIGEST_PATTERN: "64 of 0-9 and a-f, as saegis directions list shows it",
}
_KINDS = {
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
}
_LONGEST_SHOWN = 60


def validated(model: type[Model], document: Document, file: str) -> Model:
    """The document as `model`. Raises SchemaError with every problem, by line."""
    empty = list(_empty((), document.value))
    problems = [
        _problem("has no value; write one, or leave the key out", place, document, file) for place in empty
    ]
    try:
        instance = model.model_validate(document.value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            place, message = _explained(model, detail)
            # Errors of what contains an empty key only follow from it.
            if message and not any(gap[: len(place)] == place for gap in empty):
                problems.append(_problem(message, place, document, file))
        raise SchemaError(sorted(problems, key=lambda problem: problem.line)) from error
    if problems:
        raise SchemaError(problems)
    return instance


def _problem(message: str, place: Place, document: Document, file: str) -> Problem:
    return Problem(message, path_of(place), file, document.line(place))


def _empty(place: Place, value: object) -> Iterator[Place]:
    """The places where a document holds None."""
    if value is None:
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _empty((*place, key), item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _empty((*place, number), item)


def _explained(model: type[BaseModel], error: Any) -> tuple[Place, str]:
    """The place and message of a pydantic error; the message is empty if the error only repeats another."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    located = _without_tags(error["loc"], kind)
    place = (*located, *context.get("path", ()))
    if kind == "missing":
        return place, "must be given"
    if kind == "extra_forbidden":
        return place, _unknown_key(str(place[-1]), _keys(model, error["loc"][:-1]))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        keys = ", ".join(_keys(model, error["loc"])) or "no keys: write {}"
        return place, f"must be a map of {keys}; not {_shown(value)}"
    if kind == "too_short":
        # Pydantic does not count wrong entries, and reports them by themselves.
        least = context["min_length"]
        amount = "an entry" if least == 1 else f"{least} entries"
        return place, f"must have at least {amount}" if len(value) < least else ""
    if kind == "string_too_long":
        return place, f"must have at most {context['max_length']} characters, not {len(value)}"
    if kind in ("enum", "literal_error"):
        return place, _unknown_word(value, _words(context["expected"]))
    if kind == "string_pattern_mismatch":
        return place, f"must be {_PATTERNS.get(context['pattern'], context['pattern'])}; not {_shown(value)}"
    if kind in _KINDS:
        return place, f"{_KINDS[kind]}, not {_shown(value)}{_hint(kind, value)}"
    if kind == "value_error":
        return place, str(context["error"])
    if context.get("path"):
        return place, str(error["msg"])
    return place, f"{error['msg'].replace('Input should be', 'must be')}, not {_shown(value)}"


def _without_tags(location: Sequence[str | int], kind: str) -> Place:
    """A location without the tags of expressions. An unknown or missing key is its last part, and stays."""
    keys = location[-1:] if kind in ("extra_forbidden", "missing") else ()
    inner = location[: len(location) - len(keys)]
    return (*(part for part in inner if part not in _TAGGED), *keys)


def _hint(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if kind == "bool_type" and str(value).lower() in ("yes", "on", "no", "off", "y", "n"):
        return "; only true and false are"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "; numbers are decimal, and stand without quotes"
    return ""


def _words(expected: str) -> list[str]:
    """The words in pydantic's "'a', 'b' or 'c'"; members of an enumeration are in angle brackets."""
    return [part.rsplit("'", 2)[-2] for part in expected.replace(" or ", ", ").split(", ")]


def _unknown_word(value: object, words: Sequence[str]) -> str:
    known = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    near = get_close_matches(str(value), words, 1) if len(words) > 1 else []
    return f"must be {known}, not {_shown(value)}" + (f"; did you mean {near[0]}?" if near else "")


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    if near:
        return f"there is no key {key!r} here; did you mean {near[0]!r}?"
    return f"there is no key {key!r} here; there is {', '.join(known) or 'none'}"


def _keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the map at a pydantic location; for a reading also the keys that join several."""
    current = model
    for part in location:
        if part in _TAGGED:
            current = _TAGGED[str(part)]
        elif isinstance(part, str):
            fields = current.model_fields.items()
            annotation = next(field.annotation for name, field in fields if (field.alias or name) == part)
            current = _model_in(annotation) or current
    keys = [field.alias or name for name, field in current.model_fields.items()]
    return [*keys, *TAGS] if current is Reading else keys


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Rule, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in get_args(annotation))
    return next((model for model in inner if model is not None), None)


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a map" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
