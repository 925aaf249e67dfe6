"""The shape of a message in JSON: says in words what protobuf's own reader says in Python's, or lets pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from saegis_server.engine.api import FieldError

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_INTEGER = re.compile(r"-?[0-9]+")
#: The least and largest value of each kind of whole number.
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DIGITS = 20
_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)
#: Messages that are written as text, and how; others of protobuf's own are any JSON.
_TEXTS: Mapping[str, tuple[type[Duration] | type[Timestamp], str]] = {
    "google.protobuf.Duration": (Duration, 'a number of seconds, as "1.5s"'),
    "google.protobuf.Timestamp": (Timestamp, 'a time, as "2026-01-31T12:00:00Z"'),
}


def told(value: object) -> str:
    """What a JSON value is, in words."""
    kinds: Mapping[type, str] = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), "null")


def check_message(value: object, kind: Descriptor, path: str) -> None:
    """Check the members of an object that names fields of a message. What it names else is for protobuf to
    refuse. Raises FieldError with the path of what does not fit."""
    if not isinstance(value, dict):
        raise FieldError(path, f"must be an object, not {told(value)}")
    for name, member in value.items():
        field = kind.fields_by_name.get(name) or kind.fields_by_camelcase_name.get(name)
        if field is not None and member is not None:
            _check_field(member, field, f"{path}.{name}" if path else name)


def _check_field(value: object, field: FieldDescriptor, path: str) -> None:
    entry = field.message_type if field.type == FieldDescriptor.TYPE_MESSAGE else None
    if entry is not None and entry.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise FieldError(path, f"must be an object, not {told(value)}")
        for key, member in value.items():
            _check_one(key, entry.fields_by_name["key"], f"{path}[{key}]")
            _check_one(member, entry.fields_by_name["value"], f"{path}[{key}]")
    elif field.is_repeated:
        if not isinstance(value, list):
            raise FieldError(path, f"must be an array, not {told(value)}")
        if field.cpp_type in _FLOATS and all(type(member) in (int, float) for member in value):
            return  # A vector is long, and need not be gone through more closely.
        for at, member in enumerate(value):
            _check_one(member, field, f"{path}[{at}]")
    else:
        _check_one(value, field, path)


def _check_one(value: object, field: FieldDescriptor, path: str) -> None:
    """One value of a field: that of a single one, or of an array or a map."""
    if field.message_type is not None:
        _check_nested(value, field.message_type, path)
    elif field.enum_type is not None:
        _check_name(value, field.enum_type, path)
    elif (span := _RANGES.get(field.cpp_type)) is not None:
        _check_integer(value, *span, path)
    elif (fault := _fault(value, field)) is not None:
        raise FieldError(path, f"must be {fault}, not {_shown(value)}")


def _check_nested(value: object, kind: Descriptor, path: str) -> None:
    if (text := _TEXTS.get(kind.full_name)) is not None:
        own, form = text
        try:
            own().FromJsonString(str(value) if isinstance(value, str) else "")
        except (ValueError, OverflowError):
            raise FieldError(path, f"must be {form}, not {_shown(value)}") from None
    elif not kind.full_name.startswith("google.protobuf."):
        check_message(value, kind, path)


def _check_integer(value: object, least: int, most: int, path: str) -> None:
    """A whole number, also as a string or with a fraction of nothing, as protobuf takes them."""
    whole: Any = value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        whole = int(value) if len(value) <= _DIGITS + 1 else most + 1
    elif isinstance(value, float) or (isinstance(value, str) and _is_float(value)):
        whole = int(number) if (number := float(value)).is_integer() else value
    if isinstance(whole, bool) or not isinstance(whole, int):
        raise FieldError(path, f"must be a whole number, not {_shown(value)}")
    if not least <= whole <= most:
        raise FieldError(path, f"must lie between {least} and {most}")


def _check_name(value: object, kind: EnumDescriptor, path: str) -> None:
    """A name of an enumeration, or its number."""
    if isinstance(value, bool) or not (isinstance(value, int | float) or _is_float(str(value))):
        if not isinstance(value, str) or value not in kind.values_by_name:
            raise FieldError(path, f"must be one of {', '.join(kind.values_by_name)}, not {_shown(value)}")
    else:
        _check_integer(value, *_RANGES[FieldDescriptor.CPPTYPE_INT32], path)


def _fault(value: object, field: FieldDescriptor) -> str | None:
    """What a value must be and is not; None where it fits."""
    is_text = isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return None if isinstance(value, bool) else "true or false"
    if field.cpp_type in _FLOATS:
        return None if is_number or (is_text and _is_float(str(value))) else "a number"
    if field.type == FieldDescriptor.TYPE_BYTES:
        return None if is_text and _is_base64(str(value)) else "bytes in base64"
    return None if is_text else "a string"


def _is_base64(text: str) -> bool:
    return _BASE64.fullmatch(text) is not None and len(text.rstrip("=")) % 4 != 1


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as it is told to who wrote it: a short text as it is, else what it is."""
    return f'"{value}"' if isinstance(value, str) and len(value) <= 40 else told(value)
