"""A run: a request that was let in, until it has ended, and the one record of how it did."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
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
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.steering.program import SteeringProgram

log = logging.getLogger("saegis.rpc")

#: What a server without policies says to every request.
NO_POLICIES = Decision(allowed=True, policy_revision="")
#: How records say that a request ended, beside an answer's finish reasons and the names of errors.
CANCELLED, REFUSED, SCORED = "cancelled", "refused", "scored"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: by which method, under which name, how long the prompt is, how to get its text, and what
    beyond the ordinary.
    """

    method: str
    request_id: str
    prompt_tokens: int
    prompt: Callable[[], str]
    uses: tuple[UseOfRequest, ...] = ()

    @property
    def unruled(self) -> bool:
        """Whether a score is to be compared with the model without the operator's rules."""
        return any(each.use is Use.UNRULED for each in self.uses)


@dataclass(frozen=True, eq=False)
class Governed:
    """A request that was decided on, and what it runs under.

    id: the decision's name: the engine's for the request, and that of receipt and audit log. ended: how often
    an urgent policy had ended all that ran when it was decided.
    """

    id: str
    tenant: str
    asked: Asked
    program: SteeringProgram
    ended: int
    guard: Guard = UNGUARDED
    decision: Decision = NO_POLICIES

    @cached_property
    def digest(self) -> str:
        """What names all that may act on it."""
        return self.guard.digest_beside(self.program)

    @property
    def baseline(self) -> Baseline:
        """What a score is compared with: the operator's rules alone, or the bare model."""
        return AS_IT_IS if self.asked.unruled else Baseline(self.decision.ruled_program, self.guard)


class Run:
    """A request that was let in: how to end it, and the record of its end. Safe to use from any thread.

    The record is made once: by what the engine tells of the request's end, whoever waits for it or does not,
    or, where the engine never had it, by why it came to nothing.
    """

    def __init__(
        self,
        governed: Governed,
        append: Callable[[AnswerRecord], Future[Link]] | None,
        recorded: Callable[[Run], None],
    ) -> None:
        """`append` writes a record, without which none is made; `recorded` hears that it was told to."""
        self.governed = governed
        self._append, self._recorded = append, recorded
        self._lock = Lock()
        self._handed_over = self._is_recorded = False
        self._cancel: Callable[[], object] | None = None
        self._reason = ""
        #: Told the record's place once it is written, None where no log is kept.
        self.record: Future[Link | None] = Future()
        # Who waits for it may give up waiting; the record is written all the same.
        self.record.set_running_or_notify_cancel()

    def hand_over(self, cancel: Callable[[], object] | None = None) -> None:
        """The engine may have it from now on, and tells how it ends. `cancel` makes the engine end it."""
        with self._lock:
            self._handed_over, self._cancel = True, cancel or self._cancel

    def take_back(self) -> None:
        """The engine has refused it: nothing will be told of its end."""
        with self._lock:
            self._handed_over, reason = False, self._reason
        if reason:
            self._write((reason,), None)

    def end(self, reason: str = "") -> None:
        """Make the engine end it. `reason`: why, where the engine's own word for it would not tell."""
        with self._lock:
            self._reason, cancel = self._reason or reason, self._cancel
        if cancel is not None:
            cancel()

    def leave(self, reason: str) -> None:
        """Nobody waits for it any more: what the engine has of it is ended, and then recorded."""
        with self._lock:
            handed_over = self._handed_over
        if handed_over:
            self.end(reason)
        else:
            self._write((reason,), None)

    def ended(self, closing: Closing) -> None:
        """The engine has ended it. Must be called before its end is told to anyone; never raises."""
        if isinstance(closing, RequestFailed):
            done, refused = closing.done, isinstance(closing.error, RefusedByPolicyError)
            cut_off = REFUSED if refused else type(closing.error).__name__
            whole = cut_off
        else:
            done, whole = closing, SCORED
            cut_off = self._reason or FinishReason.ABORT.value
        told = (
            cut_off if reason is None or reason is FinishReason.ABORT else reason.value
            for reason in done.reasons
        )
        self._write(tuple(told) or (whole,), done)

    def give_up(self, reason: str) -> None:
        """Record it without waiting for the engine any longer."""
        self._write((reason,), None)

    def _write(self, reasons: tuple[str, ...], done: RequestFinished | None) -> None:
        with self._lock:
            if self._is_recorded:
                return
            self._is_recorded = True
        try:
            if self._append is None:
                self.record.set_result(None)
            else:
                self._append(_answer(self.governed, reasons, done)).add_done_callback(self._written)
        except Exception as error:
            log.exception("decision %s: how it ended is not recorded", self.governed.id)
            self.record.set_exception(error)
        self._recorded(self)

    def _written(self, place: Future[Link]) -> None:
        if (error := place.exception()) is not None:
            self.record.set_exception(error)
        else:
            self.record.set_result(place.result())


def _answer(governed: Governed, reasons: tuple[str, ...], done: RequestFinished | None) -> AnswerRecord:
    """The record of how a request ended; `done` is None where the engine never had it."""
    decision = governed.decision
    receipt = done.receipt if done else None
    sites, peaks = (receipt.sites, receipt.guard_peaks) if receipt else ((), ())
    timings = done.timings if done else None
    return AnswerRecord(
        decision_id=governed.id,
        request_id=governed.asked.request_id,
        tenant=governed.tenant,
        program_digest=governed.digest,
        policy_revision=decision.policy_revision,
        finish_reasons=reasons,
        usage=asdict(done.usage) if done else {},
        sites=tuple(_plain(asdict(each) | {"site": str(each.site)}) for each in sites),
        conditions=tuple(asdict(each) for each in receipt.conditions) if receipt else (),
        peaks=_plain(
            {f"{rule}/{feature}": peaks[row] for row, rule, feature in decision.peaks if row < len(peaks)}
        ),
        seconds=timings.queue + timings.prefill + timings.decode if timings else 0.0,
        first_token_steered=receipt is not None and receipt.first_token_steered,
        first_token_read=receipt is not None and receipt.first_token_read,
    )


def _plain(fields: dict[str, Json]) -> Fields:
    """Fields with null for numbers that have no form in JSON: those of a request that has diverged."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }
