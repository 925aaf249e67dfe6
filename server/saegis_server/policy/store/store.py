"""The store of policies: those in force, read without a lock, and the one way in which they change."""

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
#: Told of a change: what decided before it, what decides now, and whether it also governs running requests.
Listener = Callable[[PolicySet, PolicySet, bool], None]


@dataclass(slots=True)
class _Attempt:
    """A change that is being tried, as far as it is known. name: of the policy, once that is known."""

    action: str
    by: str
    name: str = ""
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True)
class _Change:
    """A change that is to come: the policy as it is to be, of which revision it tells, and what to keep."""

    policy: InForce
    revision: Revision
    archive: bytes | None = None
    urgent: bool = False


class PolicyStore:
    """The policies in force and their history.

    world: what they are compiled for. directory: where they survive a restart; None: they do not. keys: one
    of them must have signed a bundle; without any, none must be signed. record: told of each change before it
    takes effect, and of each bundle that was rejected; what it raises keeps a change from taking effect.
    unmatched: what is done with a policy that can match nothing of the world.

    Changes are slow and come one after another; reads never wait. Raises HistoryError where the directory
    cannot be used.
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
        """What decides now. It never changes: who holds it keeps what was in force."""
        return self._now.deciding

    @property
    def world(self) -> World:
        """What the policies are compiled for."""
        return self._checker.world

    def all_for(self, audience: Audience) -> tuple[InForce, ...]:
        """The policies in force of which an audience knows, by name, at one moment."""
        policies = self._now.policies.values()
        return tuple(each for each in policies if audience.knows_of(each.active.bundle.policy))

    def get(self, name: str, audience: Audience = OPERATOR) -> tuple[PolicyState, Bundle]:
        """A policy in force and its bundle.

        Raises UnknownPolicyError, as the others that take a name do: also where the audience does not know
        of it.
        """
        found = self._policy(name, audience)
        return found.state, found.active.bundle

    def history(self, name: str, audience: Audience = OPERATOR) -> tuple[PolicyState, tuple[Revision, ...]]:
        """A policy in force and all revisions that it had, newest first."""
        found = self._policy(name, audience)
        return found.state, found.standing.revisions[::-1]

    def on_change(self, listener: Listener) -> None:
        """Tell `listener` of each change once it is in force, in the changing thread. It must not raise."""
        self._listeners.append(listener)

    def check(self, bundle: Bundle) -> CheckedBundle:
        """The bundle, ready to come in force. Raises the PolicyError that `put` would."""
        found = self._now.policies.get(bundle.policy.name)
        return self._checker.check(bundle, found.standing if found is not None else None, self._acting)

    def examine(self, bundle: Bundle, audience: Audience = OPERATOR) -> Examination:
        """Everything that is wrong with a bundle, and how its cases went.

        It is held against the policies of which the audience may learn what they say, and no others: a
        conflict tells of both.
        """
        now = self._now
        found = now.policies.get(bundle.policy.name)
        known = found is not None and audience.knows_of(found.active.bundle.policy)
        beside = [each for each in now.deciding.policies if audience.reads(each.policy)]
        standing = found.standing if found is not None and known else None
        return self._checker.examine(bundle, standing, beside, tells_callers=audience.administers)

    def load_start(self, paths: Sequence[Path]) -> None:
        """Put the configured bundles and those that were in force last in force, whichever are newer.

        Raises PolicyError and HistoryError where a policy that was asked for cannot come in force.
        """
        with self._lock:
            failures: list[Exception] = []

            def failed(bundle: Bundle | None, error: PolicyError | HistoryError) -> None:
                failures.append(error)
                self._reject(_Attempt("put", AT_START, bundle=bundle), error)

            opened = Opening(self._checker, self._history, failed).open(paths)
            before = self._history.standings()
            for name, each in opened.items():
                self._keep_opened(each, before.get(name))
                _warn(each.policy.active)
            self._show(Snapshot.of({name: each.policy for name, each in opened.items()}), urgent=False)
            if not failures:
                self._metrics.policies_loaded()

    def put(self, archive: bytes, etag: str, by: str, *, shadow: bool = False) -> PolicyState:
        """Put a bundle in force or, with `shadow`, beside the revision that is.

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
        """Put an earlier revision in force again, given the first digits of its digest, and none beside it.

        Its serial may be lower; a later put still needs one above all that were taken. Raises
        UnknownPolicyError, UnknownRevisionError, StaleEtagError, PolicyError where the revision does not fit
        what is served any longer, and HistoryError.
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
        """Let another server have the directory."""
        self._history.close()

    @property
    def _acting(self) -> tuple[CompiledPolicy, ...]:
        """The policies in force, beside which another one must be able to be."""
        return self._now.deciding.policies

    def _policy(self, name: str, audience: Audience = OPERATOR) -> InForce:
        known = {each.standing.name: each for each in self.all_for(audience)}
        if name not in known:
            raise UnknownPolicyError(name, tuple(known))
        return known[name]

    def _is_there(self, bundle: Bundle, before: InForce, *, shadow: bool) -> bool:
        """Whether the bundle, signed as it is, is in the place that it is put to. Raises SignatureError."""
        beside = before.active if not shadow else before.shadow
        if shadow and bundle.digest == before.standing.active:
            fault = "this revision is in force; there is nothing to evaluate beside it"
            raise SerialError([Problem(fault, "serial", "policy.yaml")])
        signed_by = self._checker.signed_by(bundle)
        return beside is not None and (beside.bundle.digest, beside.signed_by) == (bundle.digest, signed_by)

    def _check_etag(self, name: str, etag: str) -> None:
        found = self._now.policies.get(name)
        now = found.standing.etag if found is not None else ""
        if etag != now:
            raise StaleEtagError(name, now)

    def _keep_opened(self, opened: Opened, before: Standing | None) -> None:
        """Persist what the start has changed."""
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
        """Keep a change; the record comes before it takes effect."""
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
        """Let reads see a snapshot, from one moment on."""
        before, self._now = self._now, snapshot
        self._metrics.show_policies(before.revisions, snapshot.revisions)
        for listener in self._listeners:
            listener(before.deciding, snapshot.deciding, urgent)

    @contextmanager
    def _rejecting(self, attempt: _Attempt) -> Iterator[None]:
        """Tell in log, metric and record why an attempt failed."""
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
            # Nothing takes effect, and what is wrong with the bundle is the more useful answer.
            log.exception("the rejection of %s could not be recorded", shown)


def _warn(checked: CheckedBundle) -> None:
    for problem in checked.warnings:
        log.warning("%s: %s", checked.bundle.revision_name, problem)


def _put(before: InForce | None, checked: CheckedBundle, by: str, archive: bytes, *, shadow: bool) -> _Change:
    """The change that a put of a checked bundle is."""
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
    found = [each for each in standing.revisions if each.digest.startswith(digest)]
    if len(found) != 1:
        known = ", ".join(f"{each.digest[:12]} ({each.revision})" for each in standing.revisions[::-1][:10])
        count = "no revision" if not found else f"{len(found)} revisions"
        fault = f"{standing.name!r} has {count} whose digest begins with {digest!r}; it has {known}"
        raise UnknownRevisionError(standing.name, digest, fault)
    return found[0]
