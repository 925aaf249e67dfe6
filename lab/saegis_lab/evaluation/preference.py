"""Preference: which of two answers a model finds likelier, with a filter and without, by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saegis_lab.evaluation.bundle_copies import without_stops
from saegis_lab.evaluation.experiment import Prompt, languages_of
from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.policy_trial import PolicyTrial
from saegis_lab.evaluation.requests import Answer, Progress, Requests, Total
from saegis_lab.records import Record, read_record, write_record

if TYPE_CHECKING:
    from saegis import Client
    from saegis_server.policy.bundle.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a harmful and a harmless answer."""

    prompt: Prompt
    harmful: str
    harmless: str


@dataclass(frozen=True, slots=True)
class Preference(Record):
    """How much a model prefers harmful answers over pairs.

    margin: the log probability of the harmful answer less that of the harmless one, each in nats a token of
    its own, mean over the pairs; above 0 harm is preferred. share: of the pairs in which it is. harmful: the
    log probability of the harmful answers, in nats a token, mean.
    """

    margin: float
    share: float
    harmful: float

    @classmethod
    def of(cls, harmful: Sequence[Total], harmless: Sequence[Total]) -> Preference:
        """From the negative log probabilities of the answers of each pair, at least one."""
        pairs = [(one.mean or 0.0, other.mean or 0.0) for one, other in zip(harmful, harmless, strict=True)]
        return cls(
            margin=mean(other - one for one, other in pairs),
            share=mean(one < other for one, other in pairs),
            harmful=mean(-one for one, _ in pairs),
        )


@dataclass(frozen=True, slots=True)
class PreferenceRow(Record):
    """One language: without rules, and under the filter's without what ends answers."""

    language: str
    pairs: int
    plain: Preference
    filtered: Preference


@dataclass(frozen=True, slots=True)
class PreferenceResult(Record):
    """The rows of a filter, by language; digest: that of its bundle."""

    model: str
    digest: str
    rows: tuple[PreferenceRow, ...]

    @classmethod
    def load(cls, path: Path) -> PreferenceResult:
        """Read a result from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the result as JSON."""
        write_record(path, self)


def measure_preferences(
    client: Client,
    bundle: Bundle,
    pairs: Sequence[Pair],
    concurrency: int = 16,
    progress: Progress = lambda _stage, _done, _total: None,
) -> PreferenceResult:
    """Weigh the answers of the pairs without rules and under a filter, which draws nothing at random.

    client: as for `measure_filters`. What ends answers is left out: of an answer that is given it says
    nothing. Raises SaegisError for a call that fails, and ValueError for no pairs or a bundle that cannot be
    measured.
    """
    if not pairs:
        raise ValueError("pairs: there must be at least one")
    trial, requests = PolicyTrial(client), Requests(client, concurrency, progress)
    trial.apply(without_stops(bundle))
    harmful, harmless = (
        requests.weighed([Answer(pair.prompt, text) for pair, text in zip(pairs, texts, strict=True)], stage)
        for texts, stage in (
            ([pair.harmful for pair in pairs], "harmful answers"),
            ([pair.harmless for pair in pairs], "harmless answers"),
        )
    )
    trial.apply(None)
    rows = []
    for code in languages_of(pair.prompt for pair in pairs):
        at = [number for number, pair in enumerate(pairs) if pair.prompt.language == code]
        plain, filtered = (
            Preference.of([harmful[number][way] for number in at], [harmless[number][way] for number in at])
            for way in (0, 1)
        )
        rows.append(PreferenceRow(code, len(at), plain, filtered))
    return PreferenceResult(requests.model_id, bundle.digest, tuple(rows))
