"""A run: an admitted request until its end, and the one record of its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import cached_property
from threading import Lock

from saegis_server.audit.chain import Link
from saegis_server.audit.records import AnswerRecord, Fields, Json
from saegis_server.engine.api import (
    AS_IT_IS,
    UNGUARDED,
    Baseline,
    Closing,
    FinishReason,
    Guard,
    RefusedByPolicyError,
    RequestFailed,
    RequestFinished,
)
from saegis_server.engine.counts import Acted, RowGroup, RowName
from saegis_server.engine.receipts import Receipt
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.disclosure import receipt_counts
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.rpc.auth.attribution import FeatureRows
from saegis_server.rpc.auth.watch_set import WatchSet
from saegis_server.rpc.services.account import Account, account_of, edit_recorded, rule_recorded
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op
from saegis_server.steering.program import SteeringProgram
from saegis_server.telemetry.traces import DIGEST, RESPONSE_ID, UNTRACED, Trace

log = logging.getLogger("saegis.rpc")

#: The decision of a server without policies on every request.
NO_POLICIES = Decision(allowed=True, policy_revision="")
#: The ends of requests in records, beside an answer's finish reasons and the names of errors.
CANCELLED, REFUSED, SCORED = "cancelled", "refused", "scored"
#: The method of a request that writes an answer, streamed or not.
GENERATE = "Generate"


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """What policies and records need to know of a request. prompt: makes the prompt's text. uses: what the
    request uses beyond the ordinary. pictures: what is recorded of each of its pictures.
    """

    method: str
    request_id: str
    prompt_tokens: int
    prompt: Callable[[], str]
    uses: tuple[UseOfRequest, ...] = ()
    pictures: tuple[Fields, ...] = ()

    @property
    def unruled(self) -> bool:
        """Whether a score is compared with the model without the operator's rules."""
        return any(use.use is Use.UNRULED for use in self.uses)


@dataclass(frozen=True, eq=False)
class Governed:
    """A request with its decision and what it runs under.

    id: the decision's id, also used by the engine, the receipt and the audit log. ended: how often, at the
    time of the decision, urgent policies had ended all requests. features: the rows that edit and that ban
    each feature, by what series call it. trace: that of the RPC. asked: its own edits and watches. watch_set:
    the features that the engine counts for every request; watching: its turn at the time of the decision.
    """

    id: str
    tenant: str
    summary: RequestSummary
    program: SteeringProgram
    ended: int
    guard: Guard = UNGUARDED
    decision: Decision = NO_POLICIES
    features: Mapping[FeatureRows, RowGroup] = field(default_factory=dict)
    trace: Trace = UNTRACED
    asked: tuple[RequestEdit, ...] = ()
    watch_set: WatchSet | None = None
    watching: int = 0

    @cached_property
    def digest(self) -> str:
        """Identifies the program and the guard that may act on it."""
        return self.guard.digest_beside(self.program)

    @property
    def edits(self) -> tuple[RequestEdit, ...]:
        """Its own edits, in their order."""
        return tuple(edit for edit in self.asked if edit.op is not Op.WATCH)

    @cached_property
    def edit_rows(self) -> tuple[RowGroup, ...]:
        """The row of each of its own edits; edits of one target may share theirs."""
        return tuple(
            frozenset((RowName(edit.site, "bans" if edit.op.bans else "edits", edit.edit.probe.key),))
            for edit in self.edits
        )

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """The rows that the engine counts together, each group once: those of each rule, then what series and
        receipts tell of single features."""
        decision = self.decision
        targets = (rows for by_target in decision.target_rows.values() for rows in by_target.values())
        every = (*decision.rule_rows.values(), *targets, *self.edit_rows, *self.features.values())
        return tuple(dict.fromkeys(every))

    def acted(self, done: Receipt) -> Mapping[RowGroup, Acted]:
        """What the engine counted of each group, as far as it had room for them."""
        return dict(zip(self.groups, done.acted, strict=False))

    @property
    def baseline(self) -> Baseline:
        """What a score is compared with: the operator's rules alone, or the unsteered model."""
        return AS_IT_IS if self.summary.unruled else Baseline(self.decision.ruled_program, self.guard)


class Run:
    """An admitted request: how to end it, and the record of its end. Safe to use from any thread.

    The record is made exactly once: from the engine's closing event, even if nobody waits for it, or, if the
    engine never had the request, from the reason why it ended.
    """

    def __init__(
        self,
        governed: Governed,
        append: Callable[[AnswerRecord], Future[Link]] | None,
        recorded: Callable[[Run], None],
        count: Callable[[Run, tuple[str, ...], Closing | None], None] = lambda *_: None,
    ) -> None:
        """`append` writes a record, None for no log; `recorded` is called once the record is on its way, and
        `count` before that, with how the answers ended and the engine's last event, None if it has none. It
        must not raise."""
        self.governed = governed
        self._append, self._recorded, self._count = append, recorded, count
        self._lock = Lock()
        self._handed_over = self._is_recorded = False
        self._cancel: Callable[[], object] | None = None
        self._reason = ""
        #: What was done to the request by whom, once the engine has ended it.
        self.account = Account()
        #: Becomes the record's place once it is written; None if no log is kept.
        self.record: Future[Link | None] = Future()
        # Whoever waits for it cannot cancel it: the record is always written.
        self.record.set_running_or_notify_cancel()

    @property
    def shown_digest(self) -> str:
        """The digest of what may act on the request; empty where a policy conceals it."""
        return self.governed.digest if receipt_counts(self.governed.decision) else ""

    def hand_over(self, cancel: Callable[[], object] | None = None) -> None:
        """From now on the engine may have the request, and reports its end. `cancel` ends it there."""
        with self._lock:
            self._handed_over, self._cancel = True, cancel or self._cancel

    def take_back(self) -> None:
        """The engine has refused the request and will not report its end."""
        with self._lock:
            self._handed_over, reason = False, self._reason
        if reason:
            self._write((reason,), None)

    def end(self, reason: str = "") -> None:
        """Make the engine end the request. `reason`: for the record, instead of the engine's own reason."""
        with self._lock:
            self._reason, cancel = self._reason or reason, self._cancel
        if cancel is not None:
            cancel()

    def leave(self, reason: str) -> None:
        """Nobody waits for the request any more: end it in the engine, if it is there, and record the end."""
        with self._lock:
            handed_over = self._handed_over
        if handed_over:
            self.end(reason)
        else:
            self._write((reason,), None)

    def ended(self, closing: Closing) -> None:
        """The engine has ended the request. Must be called before anyone learns of the end; never raises."""
        if isinstance(closing, RequestFailed):
            done, refused = closing.done, isinstance(closing.error, RefusedByPolicyError)
            cut_off = REFUSED if refused else type(closing.error).__name__
            whole = cut_off
        else:
            done, whole = closing, SCORED
            cut_off = self._reason or FinishReason.ABORT.value
        reasons = (
            cut_off if reason is None or reason is FinishReason.ABORT else reason.value
            for reason in done.reasons
        )
        try:
            self.account = account_of(self.governed, done)
        except Exception:
            log.exception("decision %s: what was done by whom is not known", self.governed.id)
        self._write(tuple(reasons) or (whole,), done, closing)
        self._trace(done)

    def _trace(self, done: RequestFinished) -> None:
        """Add to the request's trace what was done for it."""
        governed = self.governed
        if governed.trace is UNTRACED:
            return
        try:
            governed.trace.finished(done)
            governed.trace.tell({RESPONSE_ID: governed.id, DIGEST: governed.digest})
        except Exception:
            log.exception("decision %s: its trace is not whole", governed.id)

    def give_up(self, reason: str) -> None:
        """Record the end without waiting for the engine any longer."""
        self._write((reason,), None)

    def _write(
        self, reasons: tuple[str, ...], done: RequestFinished | None, closing: Closing | None = None
    ) -> None:
        with self._lock:
            if self._is_recorded:
                return
            self._is_recorded = True
        self._count(self, reasons, closing)
        try:
            if self._append is None:
                self.record.set_result(None)
            else:
                record = _answer(self.governed, reasons, done, self.account)
                self._append(record).add_done_callback(self._written)
        except Exception as error:
            log.exception("decision %s: how it ended is not recorded", self.governed.id)
            self.record.set_exception(error)
        self._recorded(self)

    def _written(self, place: Future[Link]) -> None:
        if (error := place.exception()) is not None:
            self.record.set_exception(error)
        else:
            self.record.set_result(place.result())


#: Told of the run of each request of this task that the engine has, before anything of its answer is told.
begun: ContextVar[Callable[[Run], object]] = ContextVar("begun", default=lambda _: None)


def _answer(
    governed: Governed, reasons: tuple[str, ...], done: RequestFinished | None, account: Account
) -> AnswerRecord:
    """The record of how a request ended; `done` is None if the engine never had it."""
    decision = governed.decision
    receipt = done.receipt if done else None
    sites, peaks = (receipt.sites, receipt.guard_peaks) if receipt else ((), ())
    timings = done.timings if done else None
    return AnswerRecord(
        decision_id=governed.id,
        request_id=governed.summary.request_id,
        tenant=governed.tenant,
        trace_id=governed.trace.id,
        program_digest=governed.digest,
        policy_revision=decision.policy_revision,
        finish_reasons=reasons,
        usage=asdict(done.usage) if done else {},
        sites=tuple(_plain(asdict(site) | {"site": str(site.site)}) for site in sites),
        conditions=tuple(asdict(condition) for condition in receipt.conditions) if receipt else (),
        rules=tuple(rule_recorded(rule) for rule in account.rules if rule.did_anything),
        own_edits=tuple(edit_recorded(edit) for edit in account.edits),
        peaks=_plain(
            {f"{rule}/{feature}": peaks[row] for row, rule, feature in decision.peaks if row < len(peaks)}
        ),
        seconds=timings.queue + timings.prefill + timings.decode if timings else 0.0,
        first_token_steered=receipt is not None and receipt.first_token_steered,
        first_token_read=receipt is not None and receipt.first_token_read,
    )


def _plain(fields: dict[str, Json]) -> Fields:
    """Fields with None for numbers that JSON cannot hold, such as those of a diverged request."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
