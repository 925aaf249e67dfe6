"""What a clamp does to a served model, by language: how often its subject is named, how fluent texts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.experiment import ClampUnit, Decoding, Prompt, check_values
from saegis_lab.evaluation.figures import TextFigures
from saegis_lab.evaluation.mentions import measure_mentions
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.scorers import Scorer
from saegis_lab.records import Record, read_record

if TYPE_CHECKING:
    from saegis import FeatureRef


@dataclass(frozen=True, slots=True)
class ClampRow(Record):
    """One language under one value of the clamp, or without it (`value` None).

    mentions: the share of answers, 0 to 1, in which the scorer finds anything. text: what the answers are as
    texts; its perplexity_ratio is over the unsteered model's answers in the language.
    """

    language: str
    value: float | None
    mentions: float
    text: TextFigures


@dataclass(frozen=True, slots=True)
class ClampResult(Record):
    """A clamp's rows: by value beginning with None, then by language. `words` names what was looked for."""

    model: str
    sae: str
    feature: int | str
    words: str
    unit: ClampUnit
    values: tuple[float, ...]
    decoding: Decoding
    languages: tuple[str, ...]
    rows: tuple[ClampRow, ...]

    @classmethod
    def load(cls, path: Path) -> ClampResult:
        """Read a result from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def row(self, language: str, value: float | None) -> ClampRow:
        """The row of these two. Raises KeyError where there is none."""
        for row in self.rows:
            if (row.language, row.value) == (language, value):
                return row
        raise KeyError((language, value))


def measure_clamp(
    requests: Requests,
    prompts: Sequence[Prompt],
    feature: FeatureRef,
    values: Sequence[float],
    unit: ClampUnit,
    mention: Scorer,
    words: str,
    decoding: Decoding,
) -> ClampResult:
    """Answer the prompts that are not harmful without the clamp and under each value, and score the answers.

    Raises SaegisError for a call that fails, ScorerError, and ValueError where there are no such prompts or
    the values do not ascend.
    """
    import saegis

    check_values(tuple(values))
    trials = [
        (f"clamp to {value_name(value, unit)}", [saegis.clamp(feature, value, unit=unit)]) for value in values
    ]
    measured = measure_mentions(requests, prompts, trials, mention, decoding)
    languages = tuple(dict.fromkeys(row.language for row in measured))
    rows = (
        ClampRow(code, value, row.mentions, row.text)
        for (value, code), row in zip(product((None, *values), languages), measured, strict=True)
    )
    return ClampResult(
        model=requests.model_id,
        sae=requests.sae_id(feature.sae),
        feature=feature.selector,
        words=words,
        unit=unit,
        values=tuple(values),
        decoding=decoding,
        languages=languages,
        rows=tuple(rows),
    )


def value_name(value: float, unit: ClampUnit) -> str:
    """A clamp's value as it is written on the command line: `8` or `2max`."""
    return f"{value:g}max" if unit == "max_activation" else f"{value:g}"
