"""YAML as bundles use it: maps, lists and plain scalars of YAML 1.2, read with the line of every key.

The surprising parts of YAML are refused: a key given twice, anchors, aliases, tags, several documents in a
file. Only true and false are booleans, so that `no` is a word; numbers are decimal. A number in a text can be
replaced with every other character left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import yaml

from saegis_server.policy.errors import PolicyError, SyntaxProblem
from saegis_server.problem import Problem

#: The path of a value in its document, such as ("rules", 2, "ban").
Place = tuple[str | int, ...]
#: Largest YAML file, in bytes.
LARGEST = 128 * 1024
#: After this many problems the reader gives up on a text.
MOST_PROBLEMS = 50
#: Deepest nesting of maps and lists.
DEEPEST = 32

_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?=\.?[0-9])(0|[1-9][0-9]{0,17})?(\.[0-9]{0,40})?([eE][-+]?[0-9]{1,4})?")
_SPECIAL = {"inf": float("inf"), "+inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
_TOO_DEEP = f"more than {DEEPEST} maps and lists lie within each other here"


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file as dicts, lists, texts, numbers, booleans and None, and the line of each part."""

    value: object
    lines: Mapping[Place, int]

    def line(self, place: Place) -> int:
        """The line, from 1, of the key or entry at `place`, or of the nearest thing around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_yaml(data: bytes, file: str) -> Document:
    """Read a file of one document. `file` names it in errors.

    Raises SyntaxProblem with the line of every problem, as far as the text can be parsed.
    """
    if len(data) > LARGEST:
        raise _problem(file, 0, f"has {len(data)} bytes; a YAML file may have {LARGEST}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _problem(file, line, "is not UTF-8 text") from error
    try:
        return _Reader(text, file).document()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _problem(file, line, f"the character {_character(error.character)} is not allowed") from error


def _problem(file: str, line: int, message: str) -> SyntaxProblem:
    return SyntaxProblem([Problem(message, file=file, line=line)])


def _character(character: str | int) -> str:
    return f"U+{character if isinstance(character, int) else ord(character):04X}"


class _Reader:
    """Builds a document from the parser's events. Problems that do not end the parsing are gathered."""

    def __init__(self, text: str, file: str) -> None:
        # libyaml's parser reads the largest file in a fifteenth of a second. Parsers in Python, that of
        # ruamel.yaml among them, take three seconds.
        self._events = yaml.CSafeLoader(text)
        self._text = text.split("\n")
        self._file = file
        self._lines: dict[Place, int] = {}
        self._problems: list[Problem] = []

    def document(self) -> Document:
        """The one document of the text. Raises SyntaxProblem."""
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            raise _problem(self._file, 1, "the file is empty")
        value = self._value((), self._next())
        self._next()
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise _problem(self._file, _line(after), "a second document begins here; give each a file")
        if self._problems:
            raise SyntaxProblem(self._problems)
        return Document(value, MappingProxyType(self._lines))

    def _next(self) -> yaml.Event:
        try:
            event: yaml.Event | None = self._events.get_event()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            # The end of the text has a line of its own.
            line = min(mark.line, len(self._text) - 1) if mark else 0
            self._end(line + 1, self._complaint(error, self._text[line][mark.column :] if mark else ""))
        assert event is not None  # noqa: S101 - nobody reads on after the last event
        return event

    def _complaint(self, error: yaml.MarkedYAMLError, rest: str) -> str:
        """What the parser complains of; `rest` is the rest of the line from there on."""
        if "nesting depth" in (error.problem or ""):
            return _TOO_DEEP
        hint = "; indent with spaces" if rest.startswith("\t") else ""
        complaint = " ".join(part for part in (error.context, error.problem) if part)
        return (complaint or "this is no YAML") + hint

    def _end(self, line: int, message: str) -> NoReturn:
        raise SyntaxProblem([*self._problems, Problem(message, file=self._file, line=line)])

    def _complain(self, event: yaml.Event, message: str, place: Place) -> None:
        self._problems.append(Problem(message, path_of(place), self._file, _line(event)))
        if len(self._problems) >= MOST_PROBLEMS:
            raise SyntaxProblem(self._problems)

    def _value(self, place: Place, event: yaml.Event) -> object:
        self._lines.setdefault(place, _line(event))
        if len(place) >= DEEPEST and isinstance(event, yaml.CollectionStartEvent):
            self._end(_line(event), _TOO_DEEP)
        if isinstance(event, yaml.AliasEvent):
            self._complain(event, f"*{event.anchor}: aliases are not used here; write it out", place)
            return None
        if getattr(event, "anchor", None) is not None:
            self._complain(event, "anchors are not used here; write it out where it is needed", place)
        if getattr(event, "tag", None) is not None:
            self._complain(event, "tags (!) are not used here; put text in quotes", place)
        if isinstance(event, yaml.MappingStartEvent):
            return self._map(place)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(place)
        assert isinstance(event, yaml.ScalarEvent)  # noqa: S101 - the parser has no other event here
        return event.value if event.style else _scalar(event.value)

    def _map(self, place: Place) -> dict[str, object]:
        entries: dict[str, object] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            line = _line(event)
            key = self._value((*place, "?"), event)
            del self._lines[*place, "?"]
            if not isinstance(key, str):
                self._complain(event, f"a key must be a word, not {_shown(key)}", place)
                key = "?"
            elif key in entries:
                first = self._lines[(*place, key)]
                self._complain(event, f"the key {key!r} stands in line {first} already", (*place, key))
            inside = (*place, key)
            self._lines.setdefault(inside, line)
            entries[key] = self._value(inside, self._next())
        return entries

    def _list(self, place: Place) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._value((*place, len(items)), event))
        return items


def path_of(place: Place) -> str:
    """A path as problems write it, such as "rules[2].ban.strength"."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return 1 if mark is None else int(mark.line) + 1


def _shown(value: object) -> str:
    if isinstance(value, dict | list):
        return "a map" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else f"{value} (put it in quotes)"


def _scalar(text: str) -> str | int | float | bool | None:
    """What a scalar without quotes means."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text[:1] == "." or text[1:2] == ".":
        return _SPECIAL.get(text.replace(".", "", 1).lower(), text)
    return text


def with_number(data: bytes, file: str, place: Place, value: float) -> bytes:
    """The YAML with the finite number `value` at the key `place`, whose map must exist.

    An existing number is replaced; the characters around it stay. A missing key is added as a line, or as an
    entry of a map in braces. Raises SyntaxProblem for what `read_yaml` refuses, and PolicyError if the map is
    missing, or is written so that the number cannot be set.
    """
    document = read_yaml(data, file)
    expected = deepcopy(document.value)
    fault = PolicyError(
        [
            Problem(
                f"the number cannot be set in the text; write {value!r} there",
                path_of(place),
                file,
                document.line(place),
            )
        ]
    )
    around: Any = expected
    try:
        for part in place[:-1]:
            around = around[part]
        around[place[-1]] = value
    except (LookupError, TypeError):
        raise fault from None
    edited = _edited(data.decode("utf-8"), place, repr(value)).encode("utf-8")
    # This proves that nothing else changed, however the text is written.
    try:
        actual = read_yaml(edited, file).value
    except PolicyError:
        raise fault from None
    if actual != expected:
        raise fault
    return edited


def _edited(text: str, place: Place, number: str) -> str:
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    key = None
    for part in place[:-1]:
        key, node = _entry(node, part)
    old = _entry(node, place[-1])[1]
    if old is not None:
        return text[: old.start_mark.index] + number + text[old.end_mark.index :]
    entry = f"{place[-1]}: {number}"
    if node.flow_style:
        if not node.value:
            return _put(text, node.start_mark.index + 1, entry)
        return _put(text, node.value[-1][1].end_mark.index, f", {entry}")
    return _with_line(text, node, key, entry)


def _entry(node: Any, part: str | int) -> tuple[Any, Any]:
    """The key (None in a list) and the value of a map's or list's entry; no value where there is none."""
    if isinstance(part, int):
        return None, node.value[part]
    return next(((key, value) for key, value in node.value if key.value == part), (None, None))


def _with_line(text: str, node: Any, key: Any, entry: str) -> str:
    """The text with a new line in a map that has a line for each key; `key` is the key of the map itself."""
    start, indent = node.start_mark, " " * node.start_mark.column
    after_key = "" if key is None else text[key.end_mark.index :].lstrip(" ")
    if after_key.startswith(":") and key.end_mark.line < start.line:
        # Right under the map's own key, so that comments stay above the keys that they describe.
        end = text.index("\n", key.end_mark.index)
        newline = "\n"
        if text[end - 1] == "\r":
            end, newline = end - 1, "\r\n"
        return _put(text, end, f"{newline}{indent}{entry}")
    return _put(text, start.index, f"{entry}\n{indent}")


def _put(text: str, index: int, more: str) -> str:
    return text[:index] + more + text[index:]
