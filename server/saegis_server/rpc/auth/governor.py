"""The governor: what the operator's policies say to a request, and the records that it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from threading import Condition
from uuid import uuid4

from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import DecisionRecord, Fields
from saegis_server.engine.api import FinishReason, RefusedByPolicyError
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.schema.policy import Mode
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.identity import current_identity
from saegis_server.rpc.server.threads import in_own_thread
from saegis_server.rpc.services.run import CANCELLED, Asked, Governed, Run
from saegis_server.rpc.wire.problems import InFlightError, NotServingError, PolicyDeniedError
from saegis_server.rpc.wire.programs import RequestSteering
from saegis_server.steering.operations import Op
from saegis_server.steering.table import Capacity
from saegis_server.telemetry.metrics import Metrics

#: How soon a request that came just before an urgent policy may be tried again.
RETRY_SECONDS = 0.1
#: How long the log waits, when it is closed, for the ends of requests.
LAST_RECORDS_SECONDS = 2.0


class Governor:
    """Decides on requests and records them. To be used on the event loop, but for `end_all` and `close`."""

    def __init__(
        self,
        model: str,
        capacity: Capacity,
        metrics: Metrics,
        policies: PolicyStore | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """Without policies every request may do what it asks. capacity: of a slot, at each site."""
        self.policies, self.audit = policies, audit
        self._model, self._capacity, self._metrics = model, capacity, metrics
        #: How work is done off the event loop.
        self.in_thread: Callable[[Callable[[], Decision]], Awaitable[Decision]] = in_own_thread
        self._names: set[tuple[str, str]] = set()
        self._changed = Condition()
        self._runs: set[Run] = set()
        self._ended = 0

    @asynccontextmanager
    async def admit(self, asked: Asked, steering: RequestSteering) -> AsyncIterator[Run]:
        """Decide on a request, and let it run for the length of the block; decision and end are recorded.

        The end is in the log before the block is left, unless whoever asked has gone: then the engine's work
        is ended, and the record follows. A prompt that a condition refuses raises PolicyDeniedError instead
        of the engine's error. Raises InFlightError, PolicyDeniedError, AuditUnavailableError, and
        NotServingError, to be tried again, for a request that was decided before an urgent policy came.
        """
        with self._named(asked):
            governed = await self._governed(asked, steering)
            if not governed.decision.allowed:
                await self._record_decision(governed, steering)
                raise PolicyDeniedError(governed.id, governed.decision)
            run = Run(governed, self.audit.append if self.audit else None, self._forget)
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

    async def permit(self, asked: Asked, steering: RequestSteering) -> None:
        """Decide on what only reads, such as Inspect, and record it.

        Raises PolicyDeniedError and AuditUnavailableError.
        """
        governed = await self._governed(asked, steering)
        await self._record_decision(governed, steering)
        if not governed.decision.allowed:
            raise PolicyDeniedError(governed.id, governed.decision)

    @contextmanager
    def _named(self, asked: Asked) -> Iterator[None]:
        """Keep a request's name from being used again while it runs; each tenant has names of its own."""
        name = current_identity().tenant, asked.request_id
        if name in self._names:
            raise InFlightError(asked.request_id)
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)

    def require_current(self, governed: Governed) -> None:
        """Raise NotServingError if an urgent policy has ended all that ran since a request was decided."""
        if self.is_outdated(governed):
            raise NotServingError("POLICY_REPLACED", "an urgent policy has come in force", RETRY_SECONDS)

    def is_outdated(self, governed: Governed) -> bool:
        """Whether an urgent policy has ended all that ran since a request was decided."""
        return governed.ended != self._ended

    def end_all(self) -> None:
        """End everything that runs, as an urgent policy demands. May be called from any thread."""
        with self._changed:
            self._ended += 1
            runs = list(self._runs)
        for run in runs:
            run.end(FinishReason.ABORT.value)

    async def _governed(self, asked: Asked, steering: RequestSteering) -> Governed:
        if self.policies is None:
            return Governed(_name(), current_identity().tenant, asked, steering.program, self._ended)
        return await self._decided(self.policies, asked, steering)

    async def _decided(self, policies: PolicyStore, asked: Asked, steering: RequestSteering) -> Governed:
        identity, ended = current_identity(), self._ended
        facts = RequestFacts(identity.tenant, identity.roles, self._model, steering.edits, asked.uses)
        deciding = policies.active
        if any(edit.op is Op.BAN for edit in steering.edits):
            # Whether a request's own bans can hold takes milliseconds to find out, or longer.
            decision = await self.in_thread(lambda: deciding.decide(facts))
        else:
            decision = deciding.decide(facts)
        if not decision.allowed:
            # What no server has room for is the request's own fault, whatever the policies say to it.
            steering.require_room(self._capacity)
        self._count(decision)
        return Governed(_name(), identity.tenant, asked, decision.program, ended, decision.guard, decision)

    async def _recorded(self, run: Run) -> None:
        """Wait until the log has how a request ended. Raises AuditUnavailableError."""
        if self.audit is None:
            await asyncio.wrap_future(run.record)
        else:
            await self.audit.written(run.record)

    def _forget(self, run: Run) -> None:
        """A run has ended, and its record is on its way."""
        with self._changed:
            self._runs.discard(run)
            self._changed.notify_all()

    def _refusal(self, governed: Governed, error: RefusedByPolicyError) -> PolicyDeniedError:
        policy, _, rule = error.name.partition("/")
        denied = replace(governed.decision, allowed=False, denials=(Denial(policy, rule, error.message),))
        self._metrics.policy_decisions.labels(policy, "deny", Mode.ENFORCE).inc()
        return PolicyDeniedError(governed.id, denied)

    def close(self) -> None:
        """Write what the log still holds, and let go of the files. Blocks until the last runs have ended."""
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
        identity, decision, asked = current_identity(), governed.decision, governed.asked
        await self.audit.require(
            DecisionRecord(
                decision_id=governed.id,
                request_id=asked.request_id,
                principal=identity.name,
                tenant=identity.tenant,
                roles=tuple(sorted(identity.roles)),
                method=asked.method,
                model=self._model,
                policy_revision=decision.policy_revision,
                allowed=decision.allowed,
                denials=tuple(asdict(each) for each in decision.denials),
                would_deny=tuple(asdict(each) for each in decision.would_deny),
                rules=tuple(
                    {"policy": rule.policy, "rule": rule.rule, "action": rule.action, "mode": rule.mode}
                    for rule in decision.rules
                ),
                program_digest=governed.digest,
                prompt_tokens=asked.prompt_tokens,
                edits=tuple(_edit_summary(steering)),
                uses=tuple(asdict(use) for use in asked.uses),
                prompt=asked.prompt() if self.audit.writes_prompts else None,
            )
        )

    def _count(self, decision: Decision) -> None:
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


def _edit_summary(steering: RequestSteering) -> list[Fields]:
    return [
        {
            "path": edit.path,
            "op": edit.op.value,
            "site": str(edit.site),
            "sae": None if edit.feature is None else edit.feature.loaded.id,
            "index": None if edit.feature is None else edit.feature.index,
            "value": edit.value,
            "unit": edit.unit.value,
            "phase": edit.edit.phase.name.lower(),
        }
        for edit in steering.edits
    ]
