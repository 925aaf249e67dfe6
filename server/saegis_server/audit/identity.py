"""Failed authentications in the audit log, so many a minute, so that a flood of them cannot fill it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import IdentityRecord


class IdentityFailures:
    """Writes at most `per_minute` records in any minute; what is left out is counted in the next one written.

    Nobody waits for these records. Safe to use from any thread.
    """

    def __init__(self, log: AuditLog, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens, self._at = float(per_minute), clock()
        self._suppressed = 0

    def tell(self, method: str, peer: str, reason: str) -> None:
        """Record that a call of `method` from `peer` could not say who it is."""
        with self._lock:
            now = self._clock()
            refill = (now - self._at) * self._per_minute / 60.0
            self._tokens, self._at = min(float(self._per_minute), self._tokens + refill), now
            if self._tokens < 1.0:
                self._suppressed += 1
                return
            self._tokens -= 1.0
            suppressed, self._suppressed = self._suppressed, 0
        self._log.append(IdentityRecord(method=method, peer=peer, reason=reason, suppressed=suppressed))
