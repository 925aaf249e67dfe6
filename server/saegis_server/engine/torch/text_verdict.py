"""The verdict on a text that is scored: its conditions judged as those of a prompt, until nothing changes."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from saegis_server.engine.api import NonFiniteLogitsError, Reaction, Receipt
from saegis_server.engine.torch.request_guard import NEVER, RequestGuard
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.site import Site


class TextVerdict:
    """Judges one text, reading by reading. `rows` are those in force for the reading that comes or runs."""

    def __init__(self, guard: RequestGuard | None, rows: Mapping[Site, AdmittedRows]) -> None:
        """`rows` are the program's, by site; without a guard nothing is judged."""
        self._guard, self.rows = guard, rows
        if guard is not None:
            self._judge = guard.plan.judge
            self._standing = self._judge.start()
            self._holds = np.zeros(len(guard.plan.conditions), dtype=np.bool_)
            self._on = self._holds
            self._peaks = np.full(guard.plan.readings, -np.inf, dtype=np.float32)

    def begin(self) -> None:
        """A reading begins, from the text's first token."""
        if self._guard is not None:
            self._standing = self._judge.latch(self._judge.start(), self._holds[None])

    def hear(self, read: Tensor, start: int, last: bool) -> None:
        """Judge the tokens from `start` on by their readings, [sites, 1, Q, K]; conditions hold with the
        `last` ones.

        Raises NonFiniteLogitsError where a reading is no number.
        """
        if self._guard is None:
            return
        skipped = max(0, self._guard.unread - start)
        values = self._guard.plan.of_chunk(read.cpu().numpy(), read.shape[2])[skipped:]
        if not len(values):
            return
        if np.isnan(values).any():
            raise NonFiniteLogitsError("a guard's reading is no number, so its conditions cannot be judged")
        self._peaks = np.maximum(self._peaks, values.max(0))
        holds, self._standing = self._judge.read_prompt(self._standing, values, last)
        self._holds = self._holds | holds[0]

    def changed(self) -> bool:
        """After a whole reading, whether further rows are in force now, so that the text is to be read again.

        Raises RefusedByPolicyError where a condition that holds refuses the text, or would stop an answer.
        """
        if self._guard is None:
            return False
        refusal = self._guard.plan.refusal(self._holds, Reaction.REFUSE, Reaction.STOP)
        if refusal is not None:
            raise refusal
        wanted = self._holds & self._guard.plan.edits
        if (wanted == self._on).all():
            return False
        self._on, self.rows = wanted, self._guard.plan.program(wanted)
        return True

    def complete(self, receipt: Receipt) -> Receipt:
        """The receipt of the last reading with what came of the conditions."""
        if self._guard is None:
            return receipt
        first = np.where(self._holds, -1, NEVER)
        self._guard.add(self._holds.astype(np.int64), first, self._peaks)
        return self._guard.complete(receipt)
