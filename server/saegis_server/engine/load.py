"""Load: how much the engine takes on, and what it is doing."""

import time
from collections import deque
from dataclasses import dataclass

#: Seconds over which a rate is measured.
_RATE_WINDOW = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the engine takes on: sequences that may wait, prompt tokens a chunk and between two steps."""

    queue: int = 256
    prefill_chunk: int = 256
    prefill_between_steps: int = 512


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing now. Token counts are of the KV cache; the rate is of the last seconds."""

    running: int
    waiting: int
    used_tokens: int
    max_total_tokens: int
    tokens_per_second: float
    max_running: int
    queue_limit: int
    steps: int


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
