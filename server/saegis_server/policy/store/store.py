"""The store of policies: those in force, which are read without a lock, and all changes to them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from saegis_server.audit.records import PolicyRecord
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.disclosure import OPERATOR, Audience
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import (
    HistoryError,
    PolicyError,
    SerialError,
    StaleEtagError,
    UnknownPolicyError,
    UnknownRevisionError,
    Unmatched,
)
from saegis_server.policy.store.checking import CheckedBundle, Checker, Examination
from saegis_server.policy.store.history import (
    FEWEST_DIGITS,
    DiskHistory,
    History,
    Revision,
    Standing,
)
from saegis_server.policy.store.in_force import (
    AT_START,
    InForce,
    Opened,
    Opening,
    PolicyState,
    Snapshot,
    first_standing,
    load,
    revision_of,
)
from saegis_server.problem import Problem
from saegis_server.telemetry.metrics import Metrics

log = logging.getLogger("saegis.policy")
#: Called after a change with the set before it, the set now, and whether it governs running requests too.
Listener = Callable[[PolicySet, PolicySet, bool], None]


@dataclass(slots=True)
class _Attempt:
    """A change that is being tried. name, bundle: those of the policy, once they are known."""

    action: str
    by: str
    name: str = ""
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    """A change to make: the policy after it, the revision that it is about, and the archive to keep."""

    policy: InForce
    revision: Revision
    archive: bytes | None = None
    urgent: bool = False


class PolicyStore:
    """The policies in force and their history.

    world: what they are compiled for. directory: where they are kept for a restart; None: they are not. keys:
    one of them must have signed a bundle; without any, no bundle need be signed. record: called with each
    change before it takes effect, and with each rejected bundle; if it raises, a change does not take effect.
    unmatched: what is done with a policy that can match nothing in the world.

    Changes are slow and come one after another; reads never wait. Raises HistoryError if the directory cannot
    be used.
    """

    def __init__(
        self,
        world: World,
        metrics: Metrics,
        directory: Path | None = None,
        keys: Sequence[Ed25519PublicKey] = (),
        record: Callable[[PolicyRecord], None] = lambda record: None,
        unmatched: Unmatched = Unmatched.REFUSE,
    ) -> None:
        self._history: History = History() if directory is None else DiskHistory(directory)
        self._checker = Checker(world, keys, unmatched)
        self._metrics = metrics
        self._record = record
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._now = Snapshot()

    @property
    def active(self) -> PolicySet:
        """The set that decides now. It is immutable: who holds it keeps what was in force."""
        return self._now.deciding

    @property
    def world(self) -> World:
        """What the policies are compiled for."""
        return self._checker.world

    def all_for(self, audience: Audience) -> tuple[InForce, ...]:
        """The policies in force that an audience knows of, by name, all at one moment."""
        policies = self._now.policies.values()
        return tuple(policy for policy in policies if audience.knows_of(policy.active.bundle.policy))

    def get(self, name: str, audience: Audience = OPERATOR) -> tuple[PolicyState, Bundle]:
        """A policy in force and its bundle.

        Raises UnknownPolicyError, as all methods that take a name do, also if the audience does not know of
        it.
        """
        policy = self._policy(name, audience)
        return policy.state, policy.active.bundle

    def history(self, name: str, audience: Audience = OPERATOR) -> tuple[PolicyState, tuple[Revision, ...]]:
        """A policy in force and all its revisions, newest first."""
        policy = self._policy(name, audience)
        return policy.state, policy.standing.revisions[::-1]

    def archived(self, name: str, digest: str, audience: Audience = OPERATOR) -> Bundle:
        """The bundle of the revision of a policy in force whose digest begins with `digest`.

        Raises UnknownPolicyError, UnknownRevisionError, HistoryError, and PolicyError for a file that is no
        bundle any longer.
        """
        revision = _find(self._policy(name, audience).standing, digest)
        return Bundle.from_archive(self._history.archive(revision))

    def on_change(self, listener: Listener) -> None:
        """Call `listener` after each change, in the thread that made it. It must not raise."""
        self._listeners.append(listener)

    def check(self, bundle: Bundle) -> CheckedBundle:
        """The bundle, ready to come in force. Raises the PolicyError that `put` would."""
        policy = self._now.policies.get(bundle.policy.name)
        return self._checker.check(bundle, policy.standing if policy is not None else None, self._acting)

    def examine(self, bundle: Bundle, audience: Audience = OPERATOR) -> Examination:
        """Everything that is wrong with a bundle, and how its cases went.

        It is compared only with policies whose content the audience may learn, since a conflict reveals both
        sides.
        """
        now = self._now
        policy = now.policies.get(bundle.policy.name)
        known = policy is not None and audience.knows_of(policy.active.bundle.policy)
        beside = [compiled for compiled in now.deciding.policies if audience.reads(compiled.policy)]
        standing = policy.standing if policy is not None and known else None
        return self._checker.examine(bundle, standing, beside, tells_callers=audience.administers)

    def load_start(self, paths: Sequence[Path]) -> None:
        """Put in force the configured bundles or those that were in force last, whichever are newer.

        Raises PolicyError and HistoryError if a configured policy cannot come in force.
        """
        with self._lock:
            failures: list[Exception] = []

            def failed(bundle: Bundle | None, error: PolicyError | HistoryError) -> None:
                failures.append(error)
                self._reject(_Attempt("put", AT_START, bundle=bundle), error)

            opened = Opening(self._checker, self._history, failed).open(paths)
            before = self._history.standings()
            for name, entry in opened.items():
                self._keep_opened(entry, before.get(name))
                _warn(entry.policy.active)
            self._show(Snapshot.of({name: entry.policy for name, entry in opened.items()}), urgent=False)
            if not failures:
                self._metrics.policies_loaded()

    def put(self, archive: bytes, etag: str, by: str, *, shadow: bool = False) -> PolicyState:
        """Put a bundle in force or, with `shadow`, make it the candidate beside the revision in force.

        The same bundle again changes nothing, whatever the etag. Raises PolicyError, StaleEtagError,
        UnknownPolicyError for a candidate of a policy that is not in force, and HistoryError.
        """
        attempt = _Attempt("shadow" if shadow else "put", by)
        with self._lock, self._rejecting(attempt):
            bundle = attempt.bundle = Bundle.from_archive(archive)
            name = attempt.name = bundle.policy.name
            before = self._now.policies.get(name)
            if before is not None and self._is_there(bundle, before, shadow=shadow):
                self._metrics.policies_loaded()
                return before.state
            self._check_etag(name, etag)
            if shadow and before is None:
                raise UnknownPolicyError(name, tuple(self._now.policies))
            standing = before.standing if before is not None else None
            checked = self._checker.check(bundle, standing, () if shadow else self._acting)
            _warn(checked)
            change = _put(before, checked, by, bundle.archive(), shadow=shadow)
            return self._change(attempt, change)

    def roll_back(self, name: str, digest: str, etag: str, by: str) -> PolicyState:
        """Put the earlier revision whose digest begins with `digest` in force again, with no candidate.

        Its serial may be lower; a later put still needs a serial above all that were taken. Raises
        UnknownPolicyError, UnknownRevisionError, StaleEtagError, PolicyError if the revision no longer fits
        what is served, and HistoryError.
        """
        attempt = _Attempt("roll_back", by, name)
        with self._lock, self._rejecting(attempt):
            before = self._policy(name)
            known = _find(before.standing, digest)
            self._check_etag(name, etag)
            checked = load(self._checker, self._history, known, self._acting)
            _warn(checked)
            attempt.bundle = checked.bundle
            revision = revision_of(checked, by)
            policy = InForce(before.standing.rolled_back(revision), checked)
            return self._change(attempt, _Change(policy, revision, urgent=checked.bundle.policy.urgent))

    def close(self) -> None:
        """Release the directory for another server."""
        self._history.close()

    @property
    def _acting(self) -> tuple[CompiledPolicy, ...]:
        """The policies in force, with which another one must not conflict."""
        return self._now.deciding.policies

    def _policy(self, name: str, audience: Audience = OPERATOR) -> InForce:
        known = {policy.standing.name: policy for policy in self.all_for(audience)}
        if name not in known:
            raise UnknownPolicyError(name, tuple(known))
        return known[name]

    def _is_there(self, bundle: Bundle, before: InForce, *, shadow: bool) -> bool:
        """Whether the bundle, with this signature, is already where it is put. Raises SignatureError."""
        beside = before.active if not shadow else before.shadow
        if shadow and bundle.digest == before.standing.active:
            fault = "this revision is in force; there is nothing to evaluate beside it"
            raise SerialError([Problem(fault, "serial", "policy.yaml")])
        signed_by = self._checker.signed_by(bundle)
        return beside is not None and (beside.bundle.digest, beside.signed_by) == (bundle.digest, signed_by)

    def _check_etag(self, name: str, etag: str) -> None:
        policy = self._now.policies.get(name)
        now = policy.standing.etag if policy is not None else ""
        if etag != now:
            raise StaleEtagError(name, now)

    def _keep_opened(self, opened: Opened, before: Standing | None) -> None:
        """Persist what the start changed."""
        policy = opened.policy
        if policy.standing.changes != (before.changes if before is not None else 0) and opened.archive:
            change = _Change(policy, policy.state.active, opened.archive)
            self._persist(_Attempt("put", AT_START), change)
            return
        if opened.archive is not None:
            self._history.keep(policy.state.active, opened.archive)
        if policy.standing != before:
            self._history.stand(policy.standing)

    def _change(self, attempt: _Attempt, change: _Change) -> PolicyState:
        self._persist(attempt, change)
        policies = {**self._now.policies, change.revision.name: change.policy}
        self._show(Snapshot.of(policies), change.urgent)
        self._metrics.policies_loaded()
        return change.policy.state

    def _persist(self, attempt: _Attempt, change: _Change) -> None:
        """Persist a change. It is recorded before it takes effect."""
        revision = change.revision
        if change.archive is not None:
            self._history.keep(revision, change.archive)
        self._record(
            PolicyRecord(
                action=attempt.action,
                name=revision.name,
                revision=revision.revision,
                serial=revision.serial,
                digest=revision.digest,
                by=attempt.by,
            )
        )
        self._history.stand(change.policy.standing)
        log.info(
            "%s: policy=%s revision=%s serial=%d digest=%s by=%s",
            *(attempt.action, revision.name, revision.revision, revision.serial, revision.digest[:12]),
            attempt.by,
        )

    def _show(self, snapshot: Snapshot, urgent: bool) -> None:
        """Make a snapshot the one that reads see."""
        before, self._now = self._now, snapshot
        self._metrics.show_policies(before.revisions, snapshot.revisions)
        for listener in self._listeners:
            listener(before.deciding, snapshot.deciding, urgent)

    @contextmanager
    def _rejecting(self, attempt: _Attempt) -> Iterator[None]:
        """Log, count and record an attempt that fails."""
        try:
            yield
        except (PolicyError, HistoryError) as error:
            self._reject(attempt, error)
            raise

    def _reject(self, attempt: _Attempt, error: PolicyError | HistoryError) -> None:
        bundle = attempt.bundle
        problems = tuple(map(str, error.problems)) if isinstance(error, PolicyError) else (str(error),)
        kind = error.kind if isinstance(error, PolicyError) else "state"
        self._metrics.policy_failed(kind)
        shown = bundle.revision_name if bundle is not None else attempt.name or "a bundle"
        for problem in problems:
            log.error("%s rejected, kind=%s by=%s: %s", shown, kind, attempt.by, problem)
        record = PolicyRecord(
            action="rejected",
            name=bundle.policy.name if bundle is not None else attempt.name,
            revision=bundle.policy.revision if bundle is not None else "",
            serial=bundle.policy.serial if bundle is not None else 0,
            digest=bundle.digest if bundle is not None else "",
            by=attempt.by,
            problems=problems,
        )
        try:
            self._record(record)
        except Exception:
            # Nothing takes effect either way, and the problem of the bundle is the more useful answer.
            log.exception("the rejection of %s could not be recorded", shown)


def _warn(checked: CheckedBundle) -> None:
    for problem in checked.warnings:
        log.warning("%s: %s", checked.bundle.revision_name, problem)


def _put(before: InForce | None, checked: CheckedBundle, by: str, archive: bytes, *, shadow: bool) -> _Change:
    """The change that putting a checked bundle makes."""
    revision = revision_of(checked, by)
    if before is None:
        policy = InForce(first_standing(revision), checked)
    elif shadow:
        policy = InForce(before.standing.with_shadow(revision), before.active, checked)
    else:
        standing = before.standing.with_active(revision)
        policy = InForce(standing, checked, before.shadow if standing.shadow else None)
    return _Change(policy, revision, archive, urgent=checked.bundle.policy.urgent and not shadow)


def _find(standing: Standing, digest: str) -> Revision:
    """The revision whose digest begins with some digits. Raises UnknownRevisionError."""
    if len(digest) < FEWEST_DIGITS:
        fault = f"give at least {FEWEST_DIGITS} digits of the digest, not {len(digest)}"
        raise UnknownRevisionError(standing.name, digest, fault)
    matching = [revision for revision in standing.revisions if revision.digest.startswith(digest)]
    if len(matching) != 1:
        known = ", ".join(
            f"{revision.digest[:12]} ({revision.revision})" for revision in standing.revisions[::-1][:10]
        )
        count = "no revision" if not matching else f"{len(matching)} revisions"
        fault = f"{standing.name!r} has {count} whose digest begins with {digest!r}; it has {known}"
        raise UnknownRevisionError(standing.name, digest, fault)
    return matching[0]
