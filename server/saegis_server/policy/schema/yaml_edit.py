"""YAML edits: one number of a text set to another, with every other character left as it is."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import yaml

from saegis_server.policy.errors import PolicyError
from saegis_server.policy.schema.yaml_text import Place, path_of, read_yaml
from saegis_server.problem import Problem


def with_number(data: bytes, file: str, place: Place, value: float) -> bytes:
    """The YAML in which the key at `place`, of a map that is there, has the finite number `value`.

    A number that is there already is replaced; the characters around it stay. A key that is missing is
    added as a line, or as an entry of a map in braces. Raises SyntaxProblem for what `read_yaml` refuses, and
    PolicyError where the map is not there, or is written so that the number cannot be set.
    """
    document = read_yaml(data, file)
    wanted = deepcopy(document.value)
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
    around: Any = wanted
    try:
        for part in place[:-1]:
            around = around[part]
        around[place[-1]] = value
    except (LookupError, TypeError):
        raise fault from None
    edited = _edited(data.decode("utf-8"), place, repr(value)).encode("utf-8")
    # The proof that nothing else changed, whatever form the text has.
    try:
        found = read_yaml(edited, file).value
    except PolicyError:
        raise fault from None
    if found != wanted:
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
    """The text with a line in a map that has a line for each key; `key` is that of the map itself."""
    start, indent = node.start_mark, " " * node.start_mark.column
    after_key = "" if key is None else text[key.end_mark.index :].lstrip(" ")
    if after_key.startswith(":") and key.end_mark.line < start.line:
        # Right under the map's own key, so that comments stay above the keys that they are about.
        end = text.index("\n", key.end_mark.index)
        newline = "\n"
        if text[end - 1] == "\r":
            end, newline = end - 1, "\r\n"
        return _put(text, end, f"{newline}{indent}{entry}")
    return _put(text, start.index, f"{entry}\n{indent}")


def _put(text: str, index: int, more: str) -> str:
    return text[:index] + more + text[index:]
