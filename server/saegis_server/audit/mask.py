"""Masking: values of an audit record that are replaced before it is written, named by JSON pointers."""

from __future__ import annotations

from collections.abc import Sequence

from saegis_server.audit.records import RESERVED, PlainJson

MASKED = "[masked]"
EVERY = "*"


def check_pointer(pointer: str) -> None:
    """Raise ValueError for what is no JSON pointer, or points at what the chain itself needs."""
    if not pointer.startswith("/") or pointer == "/":
        raise ValueError(f"{pointer!r} is no JSON pointer into a record; write it like '/edits/0/label'")
    first = _parts(pointer)[0]
    if first in (*RESERVED, EVERY):
        raise ValueError(f"{pointer!r}: {first!r} cannot be masked")


def mask(payload: dict[str, PlainJson], pointers: Sequence[str]) -> list[str]:
    """Replace what the pointers point at, in place; returns the pointers of what was replaced."""
    found: list[str] = []
    for pointer in pointers:
        _mask(payload, _parts(pointer), "", found)
    return sorted(set(found))


def _mask(value: PlainJson, parts: Sequence[str], path: str, found: list[str]) -> None:
    part, rest = parts[0], parts[1:]
    if isinstance(value, dict):
        keys = list(value) if part == EVERY else [part] if part in value else []
        for key in keys:
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if rest:
                _mask(value[key], rest, place, found)
            else:
                value[key] = MASKED
                found.append(place)
    elif isinstance(value, list):
        for index in range(len(value)):
            if part not in (EVERY, str(index)):
                continue
            if rest:
                _mask(value[index], rest, f"{path}/{index}", found)
            else:
                value[index] = MASKED
                found.append(f"{path}/{index}")


def _parts(pointer: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
