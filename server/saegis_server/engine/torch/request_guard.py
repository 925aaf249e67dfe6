"""The guard of a running request, and what its conditions came to over all of its sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import Reaction, RefusedByPolicyError
from saegis_server.engine.receipts import ConditionReceipt, Receipt
from saegis_server.engine.torch.conditions import ConditionResult
from saegis_server.steering.evaluator import LATE
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.site import Site


class RequestGuard:
    """What came of the conditions of one request."""

    def __init__(self, admitted: AdmittedProgram, unread: int = 0, hold_back: int = 0) -> None:
        """`unread`: how many of the tokens that the request begins with its conditions do not read;
        `hold_back`: how many tokens are judged before the first of them is told, where anything can end an
        answer."""
        self.admitted, self.unread = admitted, unread
        reactions = {guarded.reaction for guarded in admitted.guard.conditions}
        ends = not reactions.isdisjoint((Reaction.STOP, Reaction.REFUSE))
        self.hold_back = hold_back if ends else 0
        count = len(admitted.guard.conditions)
        self._held = torch.zeros(count, dtype=torch.int64)
        self._first = torch.full((count,), LATE, dtype=torch.int64)
        self._stopped = [0] * count
        self._at_prompts = torch.zeros(count, dtype=torch.int64)
        self._peaks = torch.full((len(admitted.readings),), -torch.inf)

    @property
    def came_in_force(self) -> Mapping[Site, SiteProgram]:
        """The rows of the program that were in force in any sequence that was added."""
        return self.admitted.in_force(self._held.tolist())

    def add(self, result: ConditionResult, answer: int) -> None:
        """Add what came of one sequence, whose answer begins at a position."""
        count = len(self.admitted.guard.conditions)
        self._held += result.held[:count]
        first = result.first[:count]
        self._at_prompts += first < answer
        self._first = torch.minimum(self._first, torch.where(first == LATE, first, first - answer))
        if len(self._peaks):
            sites, rows = torch.tensor(self.admitted.readings).T
            self._peaks = torch.maximum(self._peaks, result.peaks[sites, rows])

    def refusal(self, holds: Sequence[bool], *reactions: Reaction) -> RefusedByPolicyError | None:
        """The refusal by the first condition that holds and has one of these reactions."""
        for guarded, truth in zip(self.admitted.guard.conditions, holds, strict=False):
            if truth and guarded.reaction in reactions:
                message = guarded.message or "the operator's policy refuses this text"
                return RefusedByPolicyError(guarded.name, message)
        return None

    def stops(self, holds: Sequence[bool]) -> None:
        """Take note that a sequence is ended by those of its conditions that hold."""
        for place, (guarded, truth) in enumerate(zip(self.admitted.guard.conditions, holds, strict=False)):
            if truth and guarded.reaction in (Reaction.STOP, Reaction.REFUSE):
                self._stopped[place] += 1

    def complete(self, receipt: Receipt) -> Receipt:
        """The receipt with what came of the conditions."""
        counts = self._held.tolist(), self._first.tolist(), self._stopped, self._at_prompts.tolist()
        conditions = tuple(
            ConditionReceipt(guarded.name, held, None if first == LATE else first, *ends)
            for guarded, held, first, *ends in zip(self.admitted.guard.conditions, *counts, strict=True)
        )
        anything = bool((self._peaks > -torch.inf).all())
        peaks = tuple(self._peaks.tolist()) if anything else ()
        read = bool(peaks) and not self.unread
        return replace(receipt, conditions=conditions, guard_peaks=peaks, first_token_read=read)
