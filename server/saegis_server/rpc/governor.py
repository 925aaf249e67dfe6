"""The governor: what the operator's policies say to a request, and the records that it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from uuid import uuid4

from saegis_server.engine.guard import UNGUARDED, Guard
from saegis_server.engine.requests import (
    FinishReason,
    Receipt,
    RefusedByPolicyError,
    RequestFinished,
    Usage,
)
from saegis_server.engine.score import Score
from saegis_server.policy.audit_log import AuditLog
from saegis_server.policy.audit_record import AnswerRecord, DecisionRecord, Fields
from saegis_server.policy.decision import Decision, Denial, RequestFacts
from saegis_server.policy.schema import Mode, Op
from saegis_server.policy.store import PolicyStore
from saegis_server.rpc.identity import current_identity
from saegis_server.rpc.problems import NotServingError, PolicyDeniedError
from saegis_server.rpc.programs import RequestSteering
from saegis_server.rpc.threads import in_own_thread
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.telemetry.metrics import Metrics

#: How soon a request that came just before an urgent policy may be tried again.
RETRY_SECONDS = 0.1
#: What a server without policies says to every request.
_UNRULED = Decision(allowed=True, policy_revision="")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: by which method, under which name, how long the prompt is, and how to get its text."""

    method: str
    request_id: str
    prompt_tokens: int
    prompt: Callable[[], str]


@dataclass(frozen=True, eq=False)
class Governed:
    """A request that may run, and what it runs under.

    id: the decision's name in the receipt and in the audit log; empty where there is neither policy nor
    log. ended: how often an urgent policy had ended all that ran when it was decided.
    """

    id: str
    tenant: str
    asked: Asked
    program: SteeringProgram
    ended: int
    guard: Guard = UNGUARDED
    decision: Decision = _UNRULED


class Governor:
    """Decides on requests and records them. To be used on the event loop."""

    def __init__(
        self,
        model: str,
        sites: Sequence[str],
        metrics: Metrics,
        cancel: Callable[[str], None],
        policies: PolicyStore | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """Without policies every request may do what it asks.

        sites: the server's, in forward order. cancel: ends a generation by its request_id, from any thread.
        """
        self.policies, self.audit = policies, audit
        self._model, self._sites, self._metrics, self._cancel = model, tuple(sites), metrics, cancel
        #: How work is done off the event loop.
        self.in_thread: Callable[[Callable[[], Decision]], Awaitable[Decision]] = in_own_thread
        self._running: dict[str, Governed] = {}
        self._ended = 0

    async def admit(self, asked: Asked, steering: RequestSteering) -> Governed:
        """What a request may run under, recorded. Raises PolicyDeniedError, AuditUnavailableError."""
        if self.policies is None:
            name = _name() if self.audit else ""
            tenant = current_identity().tenant
            governed = Governed(name, tenant, asked, steering.program, self._ended)
        else:
            governed = await self._decided(self.policies, asked, steering)
        await self._record_decision(governed, steering)
        if not governed.decision.allowed:
            raise PolicyDeniedError(governed.id, governed.decision)
        return governed

    async def _decided(self, policies: PolicyStore, asked: Asked, steering: RequestSteering) -> Governed:
        identity, ended = current_identity(), self._ended
        facts = RequestFacts(identity.tenant, identity.roles, self._model, steering.edits)
        deciding = policies.active
        if any(edit.op is Op.BAN for edit in steering.edits):
            # Whether a request's own bans can hold takes milliseconds to find out, or longer.
            decision = await self.in_thread(lambda: deciding.decide(facts))
        else:
            decision = deciding.decide(facts)
        self._count(decision)
        program = self._with_watches(decision.program, steering.program)
        return Governed(_name(), identity.tenant, asked, program, ended, decision.guard, decision)

    def _with_watches(self, decided: SteeringProgram, own: SteeringProgram) -> SteeringProgram:
        """The decided program with the request's own watches, its sites in forward order."""
        if not any(site.watches for site in own.sites.values()):
            return decided
        found = {}
        for name in self._sites:
            if name not in decided.sites and name not in own.sites:
                continue
            watches = own.sites[name].watches if name in own.sites else ()
            found[name] = replace(decided.sites.get(name, SiteProgram()), watches=watches)
        return SteeringProgram({name: site for name, site in found.items() if site != SiteProgram()})

    @contextmanager
    def watching(self, governed: Governed) -> Iterator[None]:
        """While a request runs: an urgent policy ends it, and how it fails is recorded.

        A prompt that a condition refuses raises PolicyDeniedError instead of the engine's error. Raises
        NotServingError, to be tried again, for a request that was decided before an urgent policy came.
        """
        self._running[governed.asked.request_id] = governed
        try:
            if self.is_outdated(governed):
                raise NotServingError("POLICY_REPLACED", "an urgent policy has come in force", RETRY_SECONDS)
            yield
        except RefusedByPolicyError as error:
            self._fail(governed, "refused")
            raise self._refusal(governed, error) from error
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            self._fail(governed, "cancelled" if cancelled else type(error).__name__)
            raise
        finally:
            if self._running.get(governed.asked.request_id) is governed:
                del self._running[governed.asked.request_id]

    def is_outdated(self, governed: Governed) -> bool:
        """Whether an urgent policy has ended all that ran since a request was decided."""
        return governed.ended != self._ended

    def end_all(self) -> None:
        """End every generation that runs, as an urgent policy demands. May be called from any thread."""
        self._ended += 1
        for request_id in list(self._running):
            self._cancel(request_id)

    async def finish(
        self, governed: Governed, ended: RequestFinished, reasons: Mapping[int, FinishReason]
    ) -> None:
        """Record an answer before its end is told; `reasons` by sequence. Raises AuditUnavailableError."""
        if self.audit is not None:
            timings = ended.timings
            seconds = timings.queue + timings.prefill + timings.decode
            told = tuple(reasons[index].value for index in sorted(reasons))
            await self.audit.require(_answer(governed, told, seconds, ended.receipt, ended.usage))

    async def scored(self, governed: Governed, score: Score) -> None:
        """Record a score before it is told. Raises AuditUnavailableError."""
        if self.audit is not None:
            seconds = score.timings.queue + score.timings.prefill
            await self.audit.require(_answer(governed, ("scored",), seconds, score.receipt))

    def _refusal(self, governed: Governed, error: RefusedByPolicyError) -> PolicyDeniedError:
        policy, _, rule = error.name.partition("/")
        denied = replace(governed.decision, allowed=False, denials=(Denial(policy, rule, error.message),))
        self._metrics.policy_decisions.labels(policy, "deny", Mode.ENFORCE).inc()
        return PolicyDeniedError(governed.id, denied)

    def _fail(self, governed: Governed, reason: str) -> None:
        if self.audit is not None:
            self.audit.append(_answer(governed, (reason,), 0.0))

    def close(self) -> None:
        """Write what the log still holds, and let go of the files."""
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
                program_digest=governed.program.digest,
                prompt_tokens=asked.prompt_tokens,
                edits=tuple(_edit_summary(steering)),
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
            "site": edit.site,
            "sae": None if edit.feature is None else edit.feature.loaded.id,
            "index": None if edit.feature is None else edit.feature.index,
            "value": edit.value,
            "unit": edit.unit.value,
            "phase": edit.edit.phase.name.lower(),
        }
        for edit in steering.edits
    ]


def _answer(
    governed: Governed,
    reasons: tuple[str, ...],
    seconds: float,
    receipt: Receipt | None = None,
    usage: Usage | None = None,
) -> AnswerRecord:
    """The record of how a request ended; without a receipt where it failed."""
    decision = governed.decision
    peaks = receipt.guard_peaks if receipt else ()
    return AnswerRecord(
        decision_id=governed.id,
        request_id=governed.asked.request_id,
        tenant=governed.tenant,
        program_digest=governed.program.digest,
        policy_revision=decision.policy_revision,
        finish_reasons=reasons,
        usage=asdict(usage) if usage else {},
        sites=tuple(asdict(site) for site in receipt.sites) if receipt else (),
        conditions=tuple(asdict(each) for each in receipt.conditions) if receipt else (),
        peaks={f"{rule}/{feature}": peaks[row] for row, rule, feature in decision.peaks if row < len(peaks)},
        seconds=seconds,
    )
