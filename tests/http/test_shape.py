"""Values that do not fit a message are refused in words, at their place; whatever protobuf reads passes."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from saegis.v1 import audit_pb2, feature_pb2, generation_pb2, model_pb2, policy_pb2, steering_pb2
from saegis_server.engine.api import FieldError
from saegis_server.http.body import message_of

FILES = (audit_pb2, feature_pb2, generation_pb2, model_pb2, policy_pb2, steering_pb2)
#: A field of each kind.
FIELDS: Collection[FieldDescriptor] = {
    (field.type, field.is_repeated, getattr(field.message_type or field.enum_type, "full_name", "")): field
    for file in FILES
    for message in file.DESCRIPTOR.message_types_by_name.values()
    for field in message.fields
}.values()
VALUES: tuple[Any, ...] = (
    *("", "a", "abcd", "ab=c", "====", "!!!!", "é", "1", "-1", "1.5", "1e3", "NaN", "true", "9" * 30, "1s"),
    *("2026-01-31T12:00:00Z", "2026-13-31T12:00:00Z", "12s", "s", "1e9s", "INPUT"),
    *(True, None, 0, 1, -1, 1.0, 1.5, 10**30, float("inf"), [], {}, [None], [[]], {"a": {}}, {"a": None}),
)
#: What protobuf takes for an empty message, a number or a name, without meaning to.
LOOSE = ("''", "[]", "[[]]", "True", "1.0", "1.5")
#: What a person who wrote JSON should not be told.
PYTHON = re.compile(
    r"object is not|unsupported operand|bytes-like|literal for|unhashable|attribute|must be in \[\]"
    r"|not acceptable|Failed to parse|does not match format|NoneType|'(str|int|list|dict|bool|float)'"
)


@pytest.mark.parametrize(
    ("kind", "value", "place", "message"),
    [
        (policy_pb2.ValidatePolicyRequest, {"bundle": 7}, "bundle", "must be bytes in base64, not a number"),
        (policy_pb2.ValidatePolicyRequest, {"bundle": "no!"}, "bundle", 'must be bytes in base64, not "no!"'),
        (
            policy_pb2.ValidatePolicyRequest,
            {"bundle": "abcde"},
            "bundle",
            'must be bytes in base64, not "abcde"',
        ),
        (feature_pb2.GetFeatureUsageRequest, {"window": "soon"}, "window", "must be a number of seconds"),
        (feature_pb2.GetFeatureUsageRequest, {"order": "MOST"}, "order", "must be one of USAGE_ORDER_"),
        (audit_pb2.SearchAuditRequest, {"start_time": 5}, "start_time", "must be a time, as"),
        (steering_pb2.Steering, {"edits": {}}, "edits", "must be an array, not an object"),
        (steering_pb2.Steering, {"edits": [7]}, "edits[0]", "must be an object, not a number"),
        (
            steering_pb2.Steering,
            {"edits": [{"feature": {"index": 1.5}}]},
            "edits[0].feature.index",
            "must be a whole number, not a number",
        ),
        (
            steering_pb2.Steering,
            {"edits": [{"feature": {"index": -1}}]},
            "edits[0].feature.index",
            "must lie between 0 and",
        ),
        (steering_pb2.Steering, {"readPrompt": "yes"}, "readPrompt", 'must be true or false, not "yes"'),
    ],
)
def test_what_does_not_fit_is_said_in_words(
    kind: type[Message], value: dict[str, Any], place: str, message: str
) -> None:
    with pytest.raises(FieldError) as caught:
        message_of(kind, value, "")
    assert caught.value.field == place
    assert caught.value.description.startswith(message)


def read(kind: type[Message], value: dict[str, Any]) -> Message | FieldError:
    """What is made of a value, or what is said of it."""
    try:
        return message_of(kind, value, "")
    except FieldError as error:
        return error


def theirs(kind: type[Message], value: dict[str, Any]) -> Message | None:
    """What protobuf's own reader makes of a value; None where it refuses it."""
    try:
        return ParseDict(value, kind())
    except (ParseError, ValueError, OverflowError):
        return None


def test_every_kind_of_field_takes_what_protobuf_takes_and_tells_no_python() -> None:
    for field in FIELDS:
        assert field.containing_type is not None
        made = GetMessageClass(field.containing_type)
        for plain, value in ((each, form) for each in VALUES for form in (each, [each], {"x": each})):
            wanted, found = theirs(made, {field.name: value}), read(made, {field.name: value})
            if not isinstance(found, FieldError):
                assert found == wanted, (field.name, value)
                continue
            # Protobuf leaves out of bytes what is no base64.
            is_loose = field.type == field.TYPE_BYTES or repr(plain) in LOOSE
            assert wanted is None or is_loose, (field.name, value)
            assert found.field.startswith(field.name), (field.name, value)
            assert not PYTHON.search(found.description), (field.name, value, found.description)


def test_what_the_server_writes_it_reads() -> None:
    steering = steering_pb2.Steering(read_prompt=True)
    steering.edits.add(value=1.5).direction.values.extend([0.5, float("inf"), -1.0])
    for snake in (True, False):
        told = MessageToDict(steering, preserving_proto_field_name=snake)
        assert message_of(steering_pb2.Steering, told, "") == steering
