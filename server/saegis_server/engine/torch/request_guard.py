"""The guard of a running request: its plan, and what its conditions came to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from saegis_server.engine.api import ConditionReceipt, Receipt
from saegis_server.engine.torch.plan import Plan
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.site import Site

#: The token at which a condition held first, for one that never did.
NEVER = int(np.iinfo(np.int64).max)


class RequestGuard:
    """What came of the conditions of one request, over all of its sequences."""

    def __init__(self, plan: Plan, unread: int = 0, hold_back: bool = False) -> None:
        """`unread`: how many of the tokens that the request begins with its conditions do not read;
        `hold_back`: whether tokens are told only once they are judged, where anything can end an answer."""
        self.plan, self.unread = plan, unread
        self.holds_back = hold_back and bool(plan.ends.any())
        self._held = np.zeros(len(plan.conditions), dtype=np.int64)
        self._first = np.full(len(plan.conditions), NEVER, dtype=np.int64)
        self._peaks = np.full(plan.readings, -np.inf, dtype=np.float32)

    @property
    def came_in_force(self) -> dict[Site, AdmittedRows]:
        """The program with the rows of those that held in any sequence that was added."""
        return self.plan.program(self.plan.edits & (self._held > 0))

    def add(self, held: NDArray[np.int64], first: NDArray[np.int64], peaks: NDArray[np.float32]) -> None:
        """Add what came of one sequence: tokens at which each condition held, the first, the peaks [R]."""
        self._held += held
        self._first = np.minimum(self._first, first)
        self._peaks = np.maximum(self._peaks, peaks)

    def complete(self, receipt: Receipt) -> Receipt:
        """The receipt with what came of the conditions."""
        conditions = tuple(
            ConditionReceipt(each.name, held, None if first == NEVER else first)
            for each, held, first in zip(
                self.plan.conditions, self._held.tolist(), self._first.tolist(), strict=True
            )
        )
        peaks = self._peaks.tolist() if (self._peaks > -np.inf).all() else ()  # if anything was read
        read = bool(peaks) and not self.unread
        return replace(receipt, conditions=conditions, guard_peaks=tuple(peaks), first_token_read=read)
