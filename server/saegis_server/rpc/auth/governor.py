"""The governor: decides on requests by the operator's policies, and writes their audit records."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from threading import Condition
from uuid import uuid4

from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import DecisionRecord, Fields, Json
from saegis_server.directions.store import digest_of_direction
from saegis_server.engine.api import UNGUARDED, Closing, FinishReason, RefusedByPolicyError, RequestFailed
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.schema.policy import Mode
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.attribution import denials_of, effects, feature_rows
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.auth.watch_set import WatchSet
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.run import CANCELLED, GENERATE, Governed, RequestSummary, Run
from saegis_server.rpc.wire.problems import InFlightError, NotServingError, PolicyDeniedError
from saegis_server.rpc.wire.programs import RequestSteering
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op
from saegis_server.steering.table import Capacity
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.traces import ALLOWED, POLICY, REVISION, Attributes, current_trace

log = logging.getLogger("saegis.rpc")
#: After how long a request that an urgent policy ended may be tried again.
RETRY_SECONDS = 0.1
#: How long closing the log waits for running requests to end.
LAST_RECORDS_SECONDS = 2.0


class Governor:
    """Decides on requests and records them. For the event loop only, except `end_all` and `close`."""

    def __init__(
        self,
        model: str,
        capacity: Capacity,
        metrics: Metrics,
        policies: PolicyStore | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """Without policies every request is allowed. capacity: the rows of a slot at each site."""
        self.policies, self.audit = policies, audit
        self._model, self._capacity, self._metrics = model, capacity, metrics
        #: Runs work off the event loop.
        self.in_thread: Callable[[Callable[[], Decision]], Awaitable[Decision]] = in_own_thread
        #: The features that are counted, once there is an engine to count them.
        self.watch_set: WatchSet | None = None
        self._names: set[tuple[str, str]] = set()
        self._changed = Condition()
        self._runs: set[Run] = set()
        self._ended = 0

    @asynccontextmanager
    async def admit(self, summary: RequestSummary, steering: RequestSteering) -> AsyncIterator[Run]:
        """Decide on a request and let it run within the block. Its decision and its end are recorded.

        The end is in the log before the block is left. If the client has gone, the engine's work is ended and
        the record follows later. If a condition refuses the prompt, the engine's error becomes
        PolicyDeniedError. Raises InFlightError, PolicyDeniedError, AuditUnavailableError, and NotServingError
        (worth a retry) if an urgent policy came after the decision.
        """
        with self._named(summary):
            governed = await self._governed(summary, steering)
            if not governed.decision.allowed:
                await self._record_decision(governed, steering)
                raise PolicyDeniedError(governed.id, governed.decision)
            run = Run(governed, self.audit.append if self.audit else None, self._forget, self._count_run)
            with self._changed:
                self._runs.add(run)
            try:
                await self._record_decision(governed, steering)
                self.require_current(governed)
                yield run
            except BaseException as error:
                gone = isinstance(error, asyncio.CancelledError | GeneratorExit)
                run.leave(CANCELLED if gone else type(error).__name__)
                if not isinstance(error, Exception):
                    raise
                await self._recorded(run)
                if isinstance(error, RefusedByPolicyError):
                    raise self._refusal(governed, error) from error
                raise
            await self._recorded(run)

    async def permit(self, summary: RequestSummary, steering: RequestSteering) -> None:
        """Decide on a request that only reads, such as Inspect, and record the decision.

        Raises PolicyDeniedError and AuditUnavailableError.
        """
        governed = await self._governed(summary, steering)
        await self._record_decision(governed, steering)
        if not governed.decision.allowed:
            raise PolicyDeniedError(governed.id, governed.decision)

    @contextmanager
    def _named(self, summary: RequestSummary) -> Iterator[None]:
        """Refuse a second request of the same name while one runs; each tenant has its own names."""
        name = current_identity().tenant, summary.request_id
        if name in self._names:
            raise InFlightError(summary.request_id)
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)

    def require_current(self, governed: Governed) -> None:
        """Raise NotServingError if an urgent policy has ended all requests since this one was decided."""
        if self.is_outdated(governed):
            raise NotServingError("POLICY_REPLACED", "an urgent policy has come in force", RETRY_SECONDS)

    def is_outdated(self, governed: Governed) -> bool:
        """Whether an urgent policy has ended all requests since this one was decided."""
        return governed.ended != self._ended

    def end_all(self) -> None:
        """End all running requests, as an urgent policy demands. Any thread may call it."""
        with self._changed:
            self._ended += 1
            runs = list(self._runs)
        for run in runs:
            run.end(FinishReason.ABORT.value)

    async def _governed(self, summary: RequestSummary, steering: RequestSteering) -> Governed:
        trace = current_trace.get()
        turn = 0 if self.watch_set is None else self.watch_set.turn
        if self.policies is None:
            tenant, program = current_identity().tenant, steering.program
            features = feature_rows(program, UNGUARDED, self.watch_set)
            governed = Governed(_name(), tenant, summary, program, self._ended, features=features)
        else:
            began = time.time_ns()
            governed = await self._decided(self.policies, summary, steering)
            decision = governed.decision
            told: Attributes = {ALLOWED: decision.allowed, REVISION: decision.policy_revision}
            trace.stage(POLICY, began, time.time_ns(), told)
        watch_set = self.watch_set
        return replace(governed, trace=trace, asked=steering.edits, watch_set=watch_set, watching=turn)

    async def _decided(
        self, policies: PolicyStore, summary: RequestSummary, steering: RequestSteering
    ) -> Governed:
        identity, ended = current_identity(), self._ended
        facts = RequestFacts(identity.tenant, identity.roles, self._model, steering.edits, summary.uses)
        deciding = policies.active
        if any(edit.op is Op.BAN for edit in steering.edits):
            # Proving that a request's own bans can hold takes milliseconds or longer.
            decision = await self.in_thread(lambda: deciding.decide(facts))
        else:
            decision = deciding.decide(facts)
        if not decision.allowed:
            # If the request's rows exceed the room by themselves, that error comes before a denial.
            steering.require_room(self._capacity)
        self._count(decision)
        program, guard = decision.program, decision.guard
        features = feature_rows(program, guard, self.watch_set)
        return Governed(_name(), identity.tenant, summary, program, ended, guard, decision, features)

    async def _recorded(self, run: Run) -> None:
        """Wait until the log holds the record of a request's end. Raises AuditUnavailableError."""
        if self.audit is None:
            await asyncio.wrap_future(run.record)
        else:
            await self.audit.written(run.record)

    def _forget(self, run: Run) -> None:
        """Forget a run that has ended and whose record is being written."""
        with self._changed:
            self._runs.discard(run)
            self._changed.notify_all()

    def _count_run(self, run: Run, reasons: tuple[str, ...], closing: Closing | None) -> None:
        """Count a run that has ended, before anybody learns of it. On any thread; never raises."""
        try:
            self._metrics.count_answers(reasons)
            if closing is not None:
                self._count_effects(run.governed, closing)
        except Exception:
            log.exception("decision %s: how it ended is not counted", run.governed.id)

    def _refusal(self, governed: Governed, error: RefusedByPolicyError) -> PolicyDeniedError:
        policy, _, rule = error.name.partition("/")
        denied = replace(governed.decision, allowed=False, denials=(Denial(policy, rule, error.message),))
        self._metrics.policy_decisions.labels(policy, "deny", Mode.ENFORCE).inc()
        return PolicyDeniedError(governed.id, denied)

    def _count_effects(self, governed: Governed, closing: Closing) -> None:
        """Count what rules did to a request that the engine had, and what features did in it."""
        done = closing.done if isinstance(closing, RequestFailed) else closing
        if governed.summary.method == GENERATE:
            self._metrics.count_generation(done, governed.tenant)
        acted = governed.acted(done.receipt)
        for rule, effect in effects(governed.decision, acted, closing):
            self._metrics.rules.count(rule, effect, governed.tenant)
        for (event, feature), rows in governed.features.items():
            if (counted := acted.get(rows)) is not None:
                self._metrics.features.acted(event, feature, counted, governed.tenant)
        if self.watch_set is not None:
            fired, read = self.watch_set.fired(done.firing), self.watch_set.read(done.firing)
            self._metrics.features.fired(fired, governed.tenant, read)

    def close(self) -> None:
        """Write the pending records and close the files. Waits a while for running requests to end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, LAST_RECORDS_SECONDS)
            left = list(self._runs)
        for run in left:
            run.give_up(CANCELLED)
        if self.audit is not None:
            self.audit.close()
        if self.policies is not None:
            self.policies.close()

    # -- records --------------------------------------------------------------------------------------

    async def _record_decision(self, governed: Governed, steering: RequestSteering) -> None:
        if self.audit is None:
            return
        identity, decision, summary = current_identity(), governed.decision, governed.summary
        await self.audit.require(
            DecisionRecord(
                decision_id=governed.id,
                request_id=summary.request_id,
                principal=identity.name,
                tenant=identity.tenant,
                roles=tuple(sorted(identity.roles)),
                method=summary.method,
                model=self._model,
                policy_revision=decision.policy_revision,
                allowed=decision.allowed,
                denials=tuple(asdict(denial) for denial in decision.denials),
                would_deny=tuple(asdict(denial) for denial in decision.would_deny),
                rules=tuple(
                    {"policy": rule.policy, "rule": rule.rule, "action": rule.action, "mode": rule.mode}
                    for rule in decision.rules
                ),
                program_digest=governed.digest,
                trace_id=governed.trace.id,
                prompt_tokens=summary.prompt_tokens,
                edits=edits_recorded(steering.edits),
                uses=tuple(asdict(use) for use in summary.uses),
                pictures=summary.pictures,
                prompt=summary.prompt() if self.audit.writes_prompts else None,
            )
        )

    def _count(self, decision: Decision) -> None:
        self._metrics.rules.deny(denials_of((*decision.denials, *decision.would_deny)))
        denying = {denial.policy for denial in decision.denials}
        ruling = {rule.policy for rule in decision.rules if rule.mode is Mode.ENFORCE}
        warning = {(denial.policy, denial.mode) for denial in decision.would_deny}
        for policy in ruling - denying:
            self._metrics.policy_decisions.labels(policy, "allow", Mode.ENFORCE).inc()
        for policy in denying:
            self._metrics.policy_decisions.labels(policy, "deny", Mode.ENFORCE).inc()
        for policy, mode in warning:
            self._metrics.policy_decisions.labels(policy, "deny", mode).inc()


def _name() -> str:
    return uuid4().hex


def edits_recorded(edits: Iterable[RequestEdit]) -> tuple[Fields, ...]:
    """What the record of a decision holds of a request's edits and watches."""
    return tuple(
        {
            "path": edit.path,
            "op": edit.op.value,
            "site": str(edit.site),
            "sae": None if edit.feature is None else edit.feature.loaded.id,
            "index": None if edit.feature is None else edit.feature.index,
            "value": edit.value,
            "unit": edit.unit.value,
            "phase": edit.edit.phase.name.lower(),
            **_redirect_recorded(edit),
            **_directions_recorded(edit),
        }
        for edit in edits
    )


def _directions_recorded(edit: RequestEdit) -> Fields:
    """The digests of the directions that an edit reads and writes, and what it called the first."""
    fields: dict[str, Json] = {}
    if edit.feature is None:
        fields["direction"] = digest_of_direction(edit.edit.probe)
    if edit.direction_name:
        fields["direction_name"] = edit.direction_name
    if edit.edit.target is not None and edit.to is None:
        fields["to_direction"] = digest_of_direction(edit.edit.target)
    return fields


def _redirect_recorded(edit: RequestEdit) -> Fields:
    if edit.redirection is None:
        return {}
    to: Fields | None = None if edit.to is None else {"sae": edit.to.loaded.id, "index": edit.to.index}
    return {"to": to, "strength": edit.redirection.strength, "threshold": edit.redirection.threshold}
