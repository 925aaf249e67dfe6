"""Load: how much the engine takes on, and what it is doing."""

from dataclasses import dataclass


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
