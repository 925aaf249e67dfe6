"""Audit records: their form as JSON, and masking."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.audit import records as audit_record
from saegis_server.audit.records import MASKED, RESERVED, AuditRecord, check_pointer, mask, payload
from tests.audit.logs import decision

KEYS = st.sampled_from(["a", "b/c", "d~e", "1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)


def kinds() -> list[type[AuditRecord]]:
    return [
        each
        for each in vars(audit_record).values()
        if isinstance(each, type) and issubclass(each, AuditRecord) and each is not AuditRecord
    ]


def test_kinds_are_distinct_and_leave_the_logs_own_keys_alone() -> None:
    found = kinds()
    assert len({each.kind for each in found}) == len(found) == 10
    for each in found:
        assert not {field.name for field in dataclasses.fields(each)} & set(RESERVED)


def leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every place of a JSON value but the root, with its pointer, worked out the plain way."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(key.replace("~", "~0").replace("/", "~1"), each) for key, each in value.items()]
    elif isinstance(value, list):
        items = [(str(index), each) for index, each in enumerate(value)]
    return [
        found for key, each in items for found in [(f"{path}/{key}", each), *leaves(each, f"{path}/{key}")]
    ]


@given(st.dictionaries(KEYS, JSON, min_size=1, max_size=3), st.data())
def test_a_pointer_masks_its_place_and_no_other(value: dict[str, Any], data: st.DataObject) -> None:
    before = dict(leaves(value))
    pointer = data.draw(st.sampled_from(sorted(before)))
    check_pointer(pointer)
    assert mask(value, [pointer]) == [pointer]
    after = dict(leaves(value))
    assert after[pointer] == MASKED
    for place, was in before.items():
        if not place.startswith(pointer) and not pointer.startswith(place):
            assert after[place] == was
    assert mask(value, [pointer + "/none"]) == []


def test_a_star_means_every_item() -> None:
    value: Any = {"edits": [{"label": "a", "op": "clamp"}, {"op": "ban"}, {"label": "b"}]}
    assert mask(value, ["/edits/*/label"]) == ["/edits/0/label", "/edits/2/label"]
    assert value["edits"] == [{"label": MASKED, "op": "clamp"}, {"op": "ban"}, {"label": MASKED}]


def test_a_payload_is_plain_json() -> None:
    found = payload(decision(prompt="p"), prompts=True)
    assert json.loads(json.dumps(found)) == found
    assert found["prompt"] == "p"
    assert "prompt" not in payload(decision(prompt="p"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: 2}, "keys must be strings"),
        (b"bytes", "bytes has no form in JSON"),
        ([float("inf")], r"\[0\]: inf has no form"),
        ({"a": object()}, r"\.a: object has no form"),
    ],
)
def test_what_json_cannot_hold_is_told_with_its_field(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"decision\.edits\[0\].*{message}"):
        payload(decision(edits=(value,)))
