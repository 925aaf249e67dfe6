"""What a run's filter is and does, as the manifest keeps it: by part and language, and under attack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.filter_bars import FilterBars
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.filtered import NOTHING, FilterResult
from saegis_lab.filters.card import WHOLE
from saegis_lab.records import Record

#: The condition under which the run's own ban is in force, as the steps before have found it.
BANNED = "the ban"


@dataclass(frozen=True)
class Received(Record):
    """What a user receives in one language; shares are from 0 to 1.

    harm: harmful words an answer to a harmful prompt. refused, stopped: of harmful prompts, the share refused
    by the model, and that a rule ended. lost: of benign prompts, the share refused or stopped. kl: nats a
    token on benign text. perplexity: of the answers to harmful prompts, over ordinary ones; None where they
    are all empty.
    """

    harm: float
    refused: float
    stopped: float
    lost: float
    kl: float
    perplexity: float | None


@dataclass(frozen=True)
class PartFigures(Record):
    """What is received in each language under a part of the filter, greedy and sampled."""

    greedy: dict[str, Received]
    sampled: dict[str, Received]

    @property
    def every(self) -> tuple[Received, ...]:
        """The figures of all languages, greedy and sampled."""
        return (*self.greedy.values(), *self.sampled.values())


@dataclass(frozen=True)
class Back(Record):
    """The share of the unfiltered harm that comes back under attack: the mean of all answers, and that of
    each prompt's worst, both as means over languages. None where there was none to come back."""

    mean: float | None
    worst: float | None


@dataclass(frozen=True)
class RunFilter(Record):
    """A run's filter.

    digest: of its bundle. features, chosen_from: what it acts on, and the languages that chose all of it.
    factor, answer_factor: of the redirect, at the prompt's tokens and the answer's. ban: the strength of the
    ban behind it, None for none. stops: whether it ends answers by what they say. parts: by condition, first
    without rules; the whole is `WHOLE`. missed: every bar that the whole misses, in words; harm in a language
    that chose is none. attacks: by attack and condition; empty until it was attacked. attack_missed: as
    `missed`. hears: whether it ends answers before they begin, by what was asked.
    """

    digest: str
    features: tuple[int, ...]
    chosen_from: tuple[str, ...]
    factor: float
    answer_factor: float
    ban: float | None
    stops: bool
    parts: dict[str, PartFigures]
    missed: tuple[str, ...]
    attacks: dict[str, dict[str, Back]] = field(default_factory=dict)
    attack_missed: tuple[str, ...] = ()
    hears: bool = False

    @property
    def holds(self) -> bool:
        """Whether the whole filter meets the bars of harm, in every language that chose nothing, and of what
        it costs on benign prompts and text, in every language, greedy and sampled."""
        bars = FilterBars()
        left = [*self.left(WHOLE).values(), *self.left(WHOLE, sampled=True).values()]
        costs = self.parts[WHOLE].every
        return (
            max(left, default=0.0) <= bars.target
            and max(row.lost for row in costs) <= bars.max_lost
            and max(row.kl for row in costs) <= bars.max_kl
        )

    def left(self, part: str, *, sampled: bool = False) -> dict[str, float]:
        """By language that chose nothing, the share of its harm that a part leaves; languages without harm
        are left out."""
        before, after = (
            figures.sampled if sampled else figures.greedy
            for figures in (self.parts[NOTHING], self.parts[part])
        )
        return {
            code: after[code].harm / plain.harm
            for code, plain in before.items()
            if code not in self.chosen_from and plain.harm
        }


def part_figures(result: FilterResult) -> dict[str, PartFigures]:
    """The figures by condition of a result with one greedy and one sampled decoding, in this order."""
    greedy, sampled = (decoding.temperature for decoding in result.decodings)
    return {
        condition.name: PartFigures(
            *(
                {code: _received(result, code, condition.name, temperature) for code in result.languages}
                for temperature in (greedy, sampled)
            )
        )
        for condition in result.conditions
    }


def _received(result: FilterResult, code: str, condition: str, temperature: float) -> Received:
    row = result.row(code, condition, temperature)
    harmful, benign = row.harmful, row.benign
    if harmful is None or benign is None:
        raise ValueError("prompts: a language lacks harmful or benign ones")
    ratio = harmful.text.perplexity_ratio
    return Received(
        harm=round(harmful.harm.amount, 4),
        refused=round(harmful.refused or 0.0, 4),
        stopped=round(harmful.stopped, 4),
        lost=round(benign.lost, 4),
        kl=round(row.kl or 0.0, 5),
        perplexity=None if ratio is None else round(ratio, 3),
    )


def missed_bars(report: FilterReport) -> Iterator[str]:
    """Every bar that the whole filter misses, in words, but of harm in the languages that chose it: there a
    filter must hold by its making, and what is promised is that it holds elsewhere."""
    for miss in report.misses:
        if miss.condition == WHOLE and not (miss.figure == "harm" and miss.chosen):
            yield miss.told


def attack_figures(report: AttackReport) -> dict[str, dict[str, Back]]:
    """By attack and condition, what comes back; nothing is told of the condition without rules."""
    result = report.result
    return {
        attack: {
            condition.name: Back(
                *(_rounded(result.mean_back(attack, condition.name, worst)) for worst in (False, True))
            )
            for condition in result.conditions[1:]
        }
        for attack in result.attacks
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
