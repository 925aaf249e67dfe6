"""Validation: a document against its schema, every error a problem that names the line and the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from saegis_server.policy.errors import SchemaError
from saegis_server.policy.schema.policy import (
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
        _problem("has no value; write one, or leave the key out", each, document, file) for each in empty
    ]
    try:
        made = model.model_validate(document.value)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            place, message = _explained(model, each)
            # What lies around an empty key is wrong because of it.
            if message and not any(gap[: len(place)] == place for gap in empty):
                problems.append(_problem(message, place, document, file))
        raise SchemaError(sorted(problems, key=lambda problem: problem.line)) from error
    if problems:
        raise SchemaError(problems)
    return made


def _problem(message: str, place: Place, document: Document, file: str) -> Problem:
    return Problem(message, path_of(place), file, document.line(place))


def _empty(place: Place, value: object) -> Iterator[Place]:
    """Where a document holds None."""
    if value is None:
        yield place
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _empty((*place, key), each)
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _empty((*place, number), each)


def _explained(model: type[BaseModel], error: Any) -> tuple[Place, str]:
    """Where and what an error of pydantic is; an empty message for one that only repeats another."""
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    located = _without_tags(error["loc"], kind)
    place = (*located, *context.get("path", ()))
    if kind == "missing":
        return place, "must be given"
    if kind == "extra_forbidden":
        return place, _unknown_key(str(place[-1]), _keys(model, error["loc"][:-1]))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        keys = ", ".join(_keys(model, error["loc"])) or "no keys: write {}"
        return place, f"must be a map of {keys}; not {_shown(given)}"
    if kind == "too_short":
        # Entries that are wrong are not counted; their own errors say so.
        least = context["min_length"]
        wanted = "an entry" if least == 1 else f"{least} entries"
        return place, f"must have at least {wanted}" if len(given) < least else ""
    if kind == "string_too_long":
        return place, f"must have at most {context['max_length']} characters, not {len(given)}"
    if kind in ("enum", "literal_error"):
        return place, _unknown_word(given, _words(context["expected"]))
    if kind == "string_pattern_mismatch":
        return place, f"must be {_PATTERNS.get(context['pattern'], context['pattern'])}; not {_shown(given)}"
    if kind in _KINDS:
        return place, f"{_KINDS[kind]}, not {_shown(given)}{_hint(kind, given)}"
    if kind == "value_error":
        return place, str(context["error"])
    if context.get("path"):
        return place, str(error["msg"])
    return place, f"{error['msg'].replace('Input should be', 'must be')}, not {_shown(given)}"


def _without_tags(location: Sequence[str | int], kind: str) -> Place:
    """A location without the tags of expressions. The last part of an unknown key's is the key itself."""
    keys = location[-1:] if kind in ("extra_forbidden", "missing") else ()
    inner = location[: len(location) - len(keys)]
    return (*(part for part in inner if part not in _TAGGED), *keys)


def _hint(kind: str, given: object) -> str:
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if kind == "bool_type" and str(given).lower() in ("yes", "on", "no", "off", "y", "n"):
        return "; only true and false are"
    if kind in ("int_type", "float_type") and isinstance(given, str):
        return "; numbers are decimal, and stand without quotes"
    return ""


def _words(expected: str) -> list[str]:
    """The words of pydantic's "'a', 'b' or 'c'"; members of an enumeration stand in angle brackets."""
    return [part.rsplit("'", 2)[-2] for part in expected.replace(" or ", ", ").split(", ")]


def _unknown_word(given: object, words: Sequence[str]) -> str:
    known = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    near = get_close_matches(str(given), words, 1) if len(words) > 1 else []
    return f"must be {known}, not {_shown(given)}" + (f"; did you mean {near[0]}?" if near else "")


def _unknown_key(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    if near:
        return f"there is no key {key!r} here; did you mean {near[0]!r}?"
    return f"there is no key {key!r} here; there is {', '.join(known) or 'none'}"


def _keys(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys of the map at a location of pydantic's; of a reading also those that join several."""
    found = model
    for part in location:
        if part in _TAGGED:
            found = _TAGGED[str(part)]
        elif isinstance(part, str):
            fields = found.model_fields.items()
            annotation = next(each.annotation for name, each in fields if (each.alias or name) == part)
            found = _model_in(annotation) or found
    keys = [field.alias or name for name, field in found.model_fields.items()]
    return [*keys, *TAGS] if found is Reading else keys


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Rule, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(each) for each in get_args(annotation))
    return next((each for each in inner if each is not None), None)


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a map" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."
