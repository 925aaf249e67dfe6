"""How answers are drawn: greedy, or sampled at a temperature."""

from __future__ import annotations

from dataclasses import dataclass

from saegis_lab.evaluation.records import Record


@dataclass(frozen=True, slots=True)
class Decoding(Record):
    """Temperature 0 is greedy; else each prompt is answered `samples` times. Answers end at `max_tokens`.

    Raises ValueError naming the field that cannot be.
    """

    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    max_tokens: int = 80

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: must be finite and at least 0, not {self.temperature}")
        if self.samples < 1:
            raise ValueError(f"samples: must be at least 1, not {self.samples}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples: greedy answers to one prompt are all the same; give a temperature")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: must be at least 1, not {self.max_tokens}")

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        times = f", {self.samples} samples" if self.samples > 1 else ""
        return f"temperature {self.temperature:g}{times}"
