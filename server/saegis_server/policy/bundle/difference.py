"""Differences: what changed from one bundle to another, entry by entry and key by key."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel

from saegis.bundles import DIRECTIONS
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.files import in_folder
from saegis_server.policy.schema.policy import entries

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"

#: The lists of a policy whose entries have an id.
_LISTS = ("rules", "allow", "protect")
#: Keys that have the same value in all bundles.
_CONSTANT = ("apiVersion", "kind")
#: Keys that name the revision and do not change what it does.
_OF_THE_REVISION = ("name", "serial", "revision")


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs.

    section: "policy" for the policy's own keys, or "rules", "allow", "protect", "cases", "directions". id: of
    the entry; empty for the policy's own keys. key: which of its keys, such as "ban.strength"; empty where
    the whole entry is new or gone. before, after: the values; None where there is none.
    """

    section: str
    id: str
    key: str
    before: Value
    after: Value

    @property
    def kind(self) -> str:
        """ "added", "removed" or "changed"."""
        if self.before is None:
            return "added"
        return "removed" if self.after is None else "changed"


def differences(old: Bundle, new: Bundle) -> tuple[Change, ...]:
    """What differs, by section and id, defaults filled in. The order of entries and lists has no meaning."""
    before, after = _plain(old.policy), _plain(new.policy)
    changes = list(_keys("policy", "", _rest(before), _rest(after)))
    for section in _LISTS:
        changes += _entries(section, _by(before[section], "id"), _by(after[section], "id"))
    cases = [_by([_plain(case) for case in bundle.cases], "name") for bundle in (old, new)]
    changes += _entries("cases", *cases)
    changes += _files(in_folder(old.files, DIRECTIONS), in_folder(new.files, DIRECTIONS))
    return tuple(changes)


def by_entry(old: Bundle | None, new: Bundle) -> dict[str, str]:
    """How each entry, such as "rules.no-poison", and each own key of the policy, such as "limits", changed:
    "added", "removed" or "changed". Without an old bundle all entries are "added".
    """
    if old is None:
        return dict.fromkeys(sorted(f"{place[0]}.{id_}" for place, id_ in entries(new.policy)), "added")
    kinds = {}
    for change in differences(old, new):
        if change.section in _LISTS:
            kinds[f"{change.section}.{change.id}"] = "changed" if change.key else change.kind
        elif change.section == "policy" and (key := re.split(r"[.[]", change.key)[0]) not in _OF_THE_REVISION:
            kinds[key] = "changed"
    return dict(sorted(kinds.items()))


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _rest(policy: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in policy.items() if key not in (*_LISTS, *_CONSTANT)}


def _by(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {entry[name]: {key: value for key, value in entry.items() if key != name} for entry in entries}


def _entries(
    section: str, old: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]
) -> Iterator[Change]:
    for id_ in sorted({*old, *new}):
        before, after = old.get(id_), new.get(id_)
        if before is None or after is None:
            yield Change(section, id_, "", before, after)
        else:
            yield from _keys(section, id_, before, after)


def _keys(section: str, id_: str, before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """The keys in which two values differ; `path` is where they stand."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _keys(
                section, id_, before.get(key), after.get(key), f"{path}.{key}" if path else str(key)
            )
    elif isinstance(before, list) and isinstance(after, list):
        gone, come = _without(before, after), _without(after, before)
        if len(gone) == len(come) == 1 and isinstance(gone[0], dict) and isinstance(come[0], dict):
            yield from _keys(section, id_, gone[0], come[0], f"{path}[]")
        elif gone or come:
            yield Change(section, id_, path, gone or None, come or None)
    elif before != after:
        yield Change(section, id_, path, before, after)


def _without(values: list[Any], others: list[Any]) -> list[Any]:
    """The values that a list has more often than the other list; each counts as often as it stands there."""
    remaining = [json.dumps(value, sort_keys=True) for value in others]
    extra = []
    for value in values:
        text = json.dumps(value, sort_keys=True)
        if text in remaining:
            remaining.remove(text)
        else:
            extra.append(value)
    return extra


def _files(old: Mapping[str, bytes], new: Mapping[str, bytes]) -> Iterator[Change]:
    for path in sorted({*old, *new}):
        if old.get(path) != new.get(path):
            before, after = _digest(old.get(path)), _digest(new.get(path))
            key = "content" if before and after else ""
            yield Change("directions", path.removeprefix(f"{DIRECTIONS}/"), key, before, after)


def _digest(data: bytes | None) -> str | None:
    return None if data is None else f"sha256 {hashlib.sha256(data).hexdigest()[:16]}"
