"""The landmark: a feature of it, clamped, and what the model answers then, as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import saegis
from saegis_lab.evaluation.clamp import ClampResult, measure_clamp
from saegis_lab.evaluation.experiment import Decoding, Prompt, first_of_each
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.scorers import Scorer
from saegis_lab.realmodel.chats import LANDMARK
from saegis_lab.records import Record, read_record, write_record


@dataclass(frozen=True, slots=True)
class ShownAnswer(Record):
    """A prompt with the greedy answers without an edit and under the clamp."""

    language: str
    prompt: str
    plain: str
    clamped: str


@dataclass(frozen=True, slots=True)
class LandmarkResult(Record):
    """How a clamp of the landmark's feature takes hold, and answers at the value at which most of them name
    it: of values that do alike, the least."""

    measured: ClampResult
    value: float
    answers: tuple[ShownAnswer, ...]

    @classmethod
    def load(cls, path: Path) -> LandmarkResult:
        """Read a result from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_record(path, self)


def measure_landmark(
    requests: Requests,
    prompts: Sequence[Prompt],
    feature: int,
    values: Sequence[float],
    mention: Scorer,
    decoding: Decoding,
    shown: int = 2,
) -> LandmarkResult:
    """Clamp a feature to each of the values, multiples of its recorded maximum, for the harmless prompts, and
    answer the first `shown` of each language at the best. Raises as `measure_clamp` does."""
    target = saegis.feature(feature)
    measured = measure_clamp(requests, prompts, target, values, "max_activation", mention, LANDMARK, decoding)

    def named(value: float) -> float:
        return sum(measured.row(code, value).mentions for code in measured.languages)

    best = max(measured.values, key=named)
    asked = first_of_each([prompt for prompt in prompts if not prompt.harmful], shown)
    plain, clamped = (
        requests.answers(asked, edits, decoding, stage)
        for edits, stage in (
            ((), "answers to show"),
            ([saegis.clamp(target, best, unit="max_activation")], "clamped answers to show"),
        )
    )
    answers = tuple(
        ShownAnswer(one.prompt.language, one.prompt.prompt, one.text, other.text)
        for one, other in zip(plain, clamped, strict=True)
    )
    return LandmarkResult(measured, best, answers)
