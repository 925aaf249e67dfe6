"""The rate: how many tokens a second the engine generates now."""

import time
from collections import deque

#: Seconds over which a rate is measured.
_RATE_WINDOW = 5.0


class Rate:
    """Tokens a second over the last seconds. Any thread may ask, one may add."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque(maxlen=4096)

    def add(self, tokens: int) -> None:
        """Count what has just been generated."""
        self._recent.append((time.monotonic(), tokens))

    def per_second(self) -> float:
        """The rate now."""
        oldest = time.monotonic() - _RATE_WINDOW
        return sum(count for moment, count in list(self._recent) if moment > oldest) / _RATE_WINDOW
