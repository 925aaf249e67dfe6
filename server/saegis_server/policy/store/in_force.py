"""Policies in force: each as it stands with its checked bundles, and all of them at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.store.checking import CheckedBundle
from saegis_server.policy.store.state import PolicyState, Revision, Standing


@dataclass(frozen=True, slots=True)
class InForce:
    """One policy: how it stands, the bundle in force, and the candidate beside it."""

    standing: Standing
    active: CheckedBundle
    shadow: CheckedBundle | None = None

    @property
    def state(self) -> PolicyState:
        """What is told of it."""
        policy = self.active.bundle.policy
        return PolicyState(
            active=self._revision(self.active),
            shadow=self._revision(self.shadow) if self.shadow is not None else None,
            etag=self.standing.etag,
            description=policy.description,
            rules=tuple(rule.id for rule in policy.rules),
        )

    def _revision(self, checked: CheckedBundle) -> Revision:
        """As it was put; by the key that it was last verified with."""
        known = self.standing.of_digest(checked.bundle.digest)
        if known is None:
            raise LookupError(f"{checked.bundle.revision_name} is in force and not in its history")
        return replace(known, signed_by=checked.signed_by)


@dataclass(frozen=True)
class Snapshot:
    """All policies in force at one moment, by name, and what decides by them. Made once for each change."""

    policies: Mapping[str, InForce] = field(default_factory=lambda: MappingProxyType({}))
    deciding: PolicySet = field(default_factory=lambda: PolicySet(()))

    @property
    def revisions(self) -> frozenset[tuple[str, str]]:
        """The names of the policies and of their revisions in force."""
        return frozenset((name, each.active.bundle.policy.revision) for name, each in self.policies.items())

    @classmethod
    def of(cls, policies: Mapping[str, InForce]) -> Snapshot:
        """The snapshot of some policies."""
        ordered = {name: policies[name] for name in sorted(policies)}
        active = tuple(each.active.compiled for each in ordered.values())
        beside = tuple(each.shadow.compiled for each in ordered.values() if each.shadow is not None)
        return cls(MappingProxyType(ordered), PolicySet(active, beside))
