"""Changes: what one revision of a policy says otherwise than another, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from saegis_server.policy.schema.policy import Allowance, Policy, Protection, Rule

#: Keys that are about the revision itself and not about what it does.
_OF_THE_REVISION = frozenset(("apiVersion", "kind", "name", "serial", "revision"))
_LISTS = ("rules", "allow", "protect")


class Change(StrEnum):
    """What became of an entry or a key."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Changed:
    """One difference. key: such as "rules.no-poison" or "mode"."""

    change: Change
    key: str


def changes(before: Policy | None, after: Policy) -> tuple[Changed, ...]:
    """What `after` says otherwise, by key. Without a policy before it, everything that it has is added."""
    found = []
    for key in Policy.model_fields:
        if key in _OF_THE_REVISION:
            continue
        if key in _LISTS:
            old = _by_id(before, key) if before is not None else {}
            new = _by_id(after, key)
            found += [Changed(Change.REMOVED, f"{key}.{each}") for each in old.keys() - new.keys()]
            found += [Changed(Change.ADDED, f"{key}.{each}") for each in new.keys() - old.keys()]
            shared = old.keys() & new.keys()
            found += [Changed(Change.CHANGED, f"{key}.{each}") for each in shared if old[each] != new[each]]
        elif before is not None and getattr(before, key) != getattr(after, key):
            found.append(Changed(Change.CHANGED, key))
    return tuple(sorted(found, key=lambda each: each.key))


def _by_id(policy: Policy, key: str) -> dict[str, Rule | Allowance | Protection]:
    return {entry.id: entry for entry in getattr(policy, key)}
