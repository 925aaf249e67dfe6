"""Policies in force: each with its checked bundles, all of them at one moment, and their choice at the start.

At the start a policy may have a configured bundle and one that was in force last.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.errors import ConflictError, HistoryError, PolicyError
from saegis_server.policy.store.checking import CheckedBundle, Checker, check_conflicts, check_serial
from saegis_server.policy.store.history import History, Revision, Standing
from saegis_server.problem import Problem

log = logging.getLogger("saegis.policy")
#: The name of who puts a configured bundle in force.
AT_START = "start"
#: Called with what could not come in force: the bundle, if it could be read, and the error.
Failed = Callable[[Bundle | None, PolicyError | HistoryError], None]


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as callers see it: the revision in force, the candidate beside it, and its description.

    rules: the ids of its rules.
    """

    active: Revision
    shadow: Revision | None
    etag: str
    description: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InForce:
    """One policy: its state in the history, the bundle in force, and the candidate beside it."""

    standing: Standing
    active: CheckedBundle
    shadow: CheckedBundle | None = None

    @property
    def state(self) -> PolicyState:
        """The policy as callers see it."""
        policy = self.active.bundle.policy
        return PolicyState(
            active=self._revision(self.active),
            shadow=self._revision(self.shadow) if self.shadow is not None else None,
            etag=self.standing.etag,
            description=policy.description,
            rules=tuple(rule.id for rule in policy.rules),
        )

    def _revision(self, checked: CheckedBundle) -> Revision:
        """The revision as it was put, with the key that last verified it."""
        known = self.standing.of_digest(checked.bundle.digest)
        if known is None:
            raise LookupError(f"{checked.bundle.revision_name} is in force and not in its history")
        return replace(known, signed_by=checked.signed_by)


@dataclass(frozen=True)
class Snapshot:
    """All policies in force at one moment, by name, and the set that decides. Made once for each change."""

    policies: Mapping[str, InForce] = field(default_factory=lambda: MappingProxyType({}))
    deciding: PolicySet = field(default_factory=lambda: PolicySet(()))

    @property
    def revisions(self) -> frozenset[tuple[str, str]]:
        """The names of the policies and of their revisions in force."""
        return frozenset(
            (name, policy.active.bundle.policy.revision) for name, policy in self.policies.items()
        )

    @classmethod
    def of(cls, policies: Mapping[str, InForce]) -> Snapshot:
        """The snapshot of these policies."""
        ordered = {name: policies[name] for name in sorted(policies)}
        active = tuple(policy.active.compiled for policy in ordered.values())
        beside = tuple(policy.shadow.compiled for policy in ordered.values() if policy.shadow is not None)
        return cls(MappingProxyType(ordered), PolicySet(active, beside))


@dataclass(frozen=True, slots=True)
class Opened:
    """A policy that comes in force. archive: of a new bundle, which is to be kept; else None."""

    policy: InForce
    archive: bytes | None = None


class Opening:
    """Decides for each policy between the configured bundle and the last one that was in force.

    The newer serial wins. If a configured bundle is broken, the last one stays in force and `failed` is
    called. If there is no last one, the start fails: a configured policy is never left out.
    """

    def __init__(self, checker: Checker, history: History, failed: Failed) -> None:
        self._checker = checker
        self._history = history
        self._failed = failed

    def open(self, paths: Sequence[Path]) -> dict[str, Opened]:
        """The policies in force, by name. Raises PolicyError and HistoryError."""
        standings = self._history.standings()
        opened: dict[str, Opened] = {}
        for path in paths:
            source = str(path.resolve())
            configured = self._configured(path, source, standings)
            name = configured.policy.standing.name
            if name in opened:
                fault = f"another configured bundle is of the policy {name!r} too; give each once"
                raise PolicyError([Problem(fault, file=str(path))])
            standing = replace(configured.policy.standing, source=source)
            opened[name] = replace(configured, policy=replace(configured.policy, standing=standing))
        for name in sorted(standings.keys() - opened.keys()):
            opened[name] = self._last(standings[name])
        self._settle(opened, standings)
        return opened

    def _settle(self, opened: dict[str, Opened], standings: dict[str, Standing]) -> None:
        """Replace each new bundle that conflicts with another policy by the last good one.

        Raises ConflictError if there is none.
        """
        for name in [name for name, entry in opened.items() if entry.archive is not None]:
            checked = opened[name].policy.active
            try:
                acting = [entry.policy.active.compiled for entry in opened.values()]
                check_conflicts(checked.bundle, checked.compiled, acting)
            except ConflictError as error:
                self._failed(checked.bundle, error)
                standing = standings.get(name)
                if standing is None or standing.active == checked.bundle.digest:
                    raise
                log.error("%s is not put in force; the last good one is", checked.bundle.revision_name)
                opened[name] = self._last(standing)

    def _configured(self, path: Path, source: str, standings: dict[str, Standing]) -> Opened:
        """What comes in force for one configured path."""
        bundle, standing = None, None
        try:
            bundle = Bundle.read(path)
            standing = standings.get(bundle.policy.name)
            if standing is not None and self._is_taken(bundle, standing):
                return self._last_or_same(bundle, standing)
            return self._first(bundle, standing)
        except PolicyError as error:
            if bundle is None:
                standing = next((known for known in standings.values() if known.source == source), None)
            self._failed(bundle, error)
            if standing is None:
                raise
            log.error("%s is not put in force; the last good one of %s is", path, standing.name)
            return self._last(standing)

    def _is_taken(self, bundle: Bundle, standing: Standing) -> bool:
        """Whether the bundle was taken before, or is older than one that was. Raises SerialError."""
        known = standing.of_digest(bundle.digest) is not None
        if bundle.policy.serial > standing.highest:
            return False
        if not known and bundle.policy.serial == standing.highest:
            check_serial(bundle, standing)
        if bundle.digest != standing.active:
            log.warning(
                "the configured bundle %s stays out of force: %s has serial %d, and up to %d were taken",
                bundle.revision_name,
                standing.name,
                bundle.policy.serial,
                standing.highest,
            )
        return True

    def _first(self, bundle: Bundle, standing: Standing | None) -> Opened:
        """A new configured bundle, checked. Raises PolicyError."""
        checked = self._checker.check(bundle, standing)
        revision = revision_of(checked, AT_START)
        if standing is None:
            return Opened(InForce(first_standing(revision), checked), bundle.archive())
        return self._opened(standing.with_active(revision), checked, bundle.archive())

    def _last_or_same(self, bundle: Bundle, standing: Standing) -> Opened:
        """The last bundle in force. If its archive is broken, the configured one, if both are the same."""
        try:
            return self._last(standing)
        except (PolicyError, HistoryError) as error:
            if bundle.digest != standing.active:
                raise
            self._failed(bundle, error)
        checked = self._checker.check(bundle, standing)
        return self._opened(standing, checked, bundle.archive())

    def _last(self, standing: Standing) -> Opened:
        """The last bundle in force, checked again. Raises PolicyError and HistoryError."""
        active = standing.of_digest(standing.active)
        if active is None:
            raise HistoryError(f"{standing.name}: its history lacks the revision in force")
        return self._opened(standing, load(self._checker, self._history, active))

    def _opened(self, standing: Standing, checked: CheckedBundle, archive: bytes | None = None) -> Opened:
        """A bundle with its candidate. A broken candidate is left out, since it never acts."""
        revision, beside = standing.of_digest(standing.shadow), None
        if revision is not None:
            try:
                beside = load(self._checker, self._history, revision)
            except (PolicyError, HistoryError) as error:
                self._failed(None, error)
                log.error("the candidate %s@%s is evaluated no longer", revision.name, revision.revision)
                standing = replace(standing, shadow="", changes=standing.changes + 1)
        return Opened(InForce(standing, checked, beside), archive)


def load(
    checker: Checker, history: History, revision: Revision, beside: Iterable[CompiledPolicy] = ()
) -> CheckedBundle:
    """A revision from the history, to be in force `beside` policies; all but its serial is checked again.

    Raises PolicyError and HistoryError.
    """
    bundle = Bundle.from_archive(history.archive(revision))
    if (bundle.policy.name, bundle.digest) != (revision.name, revision.digest):
        raise HistoryError(
            f"the archive {revision.file_name} of {revision.name} is not the bundle that was put; restore it"
        )
    return checker.check(bundle, beside=beside)


def revision_of(checked: CheckedBundle, by: str) -> Revision:
    """The revision of a bundle that is put now."""
    policy = checked.bundle.policy
    return Revision(
        name=policy.name,
        serial=policy.serial,
        revision=policy.revision,
        digest=checked.bundle.digest,
        signed_by=checked.signed_by,
        put_time=datetime.now(UTC),
        put_by=by,
    )


def first_standing(revision: Revision) -> Standing:
    """The state of a policy with its first revision."""
    return Standing(revision.name, revision.digest).with_active(revision)
