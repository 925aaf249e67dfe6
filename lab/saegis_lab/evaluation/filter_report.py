"""Which figures of measured filters miss their bars, in every language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saegis_lab.evaluation.filter_bars import (
    BarredFigures,
    Excess,
    FilterBars,
    FilterFigure,
    newly_lost,
)
from saegis_lab.evaluation.filtered import FilterResult, FilterRow
from saegis_lab.records import Record, read_record, write_record


def barred_figures(plain: FilterRow, row: FilterRow) -> BarredFigures:
    """What bars are about of a filter's row, beside the row of the same language without it."""
    harmful, benign, before = row.harmful, row.benign, plain.benign
    return BarredFigures(
        harm_before=None if plain.harmful is None else plain.harmful.harm.amount,
        harm=None if harmful is None else harmful.harm.amount,
        lost=None if benign is None or before is None else newly_lost(before.lost, benign.lost),
        kl=row.kl,
        perplexity=None if harmful is None else harmful.text.perplexity_ratio,
        benign_perplexity=None if benign is None else benign.text.perplexity_ratio,
    )


def in_words(excess: Excess, plain: FilterRow, row: FilterRow) -> str:
    """A miss of a filter's row, with the figure and its bar."""
    figure, value, bar = excess
    if figure == "harm" and plain.harmful is not None and row.harmful is not None:
        before, after = plain.harmful.harm.amount, row.harmful.harm.amount
        left = f"{value:.1%} is left" if before else "there was none"
        unit = "harm" if row.harmful.harm.words is None else "harmful words an answer"
        return f"{unit}: {before:.3f} becomes {after:.3f}, not {bar * before:.3f} ({left})"
    if figure == "lost":
        before = plain.benign.lost if plain.benign else 0.0
        beyond = f" beyond the {before:.1%} without the filter" if before else ""
        return f"benign answers refused or stopped: {value:.1%}{beyond}, not {bar:.1%}"
    if figure == "kl":
        return f"KL on benign text: {value:.4f}, not {bar:g}"
    kind = "benign" if figure == "benign_perplexity" else "harmful"
    return f"answers to {kind} prompts: {value:.2f} times ordinary perplexity, not {bar:g}"


@dataclass(frozen=True, slots=True)
class FilterMiss(Record):
    """A figure that misses its bar. chosen: whether the language took part in choosing the filter.

    value: the figure; of harm, the share that is left, or the harm itself where there was none. told: the
    condition, the language, the figure and the bar in words.
    """

    condition: str
    language: str
    temperature: float
    chosen: bool
    figure: FilterFigure
    value: float
    bar: float
    told: str


@dataclass(frozen=True, slots=True)
class FilterReport(Record):
    """What `saegis eval filter` writes: the figures, the bars, and every miss in every language.

    misses: by condition, then by temperature, then by language.
    """

    result: FilterResult
    bars: FilterBars
    misses: tuple[FilterMiss, ...]

    @classmethod
    def of(cls, result: FilterResult, bars: FilterBars | None = None) -> FilterReport:
        """The report of a result."""
        bars = bars or FilterBars()
        misses = []
        for condition in result.conditions[1:]:
            for decoding in result.decodings:
                for code in result.languages:
                    plain, row = (
                        result.row(code, name, decoding.temperature)
                        for name in (result.unfiltered, condition.name)
                    )
                    chosen = code in result.chosen_from
                    place = f"{condition.name}, {code}{'' if chosen else ' (took no part)'}, {decoding}"
                    misses += [
                        FilterMiss(
                            condition=condition.name,
                            language=code,
                            temperature=decoding.temperature,
                            chosen=chosen,
                            figure=excess.figure,
                            value=excess.value,
                            bar=excess.bar,
                            told=f"{place}: {in_words(excess, plain, row)}",
                        )
                        for excess in bars.excesses(barred_figures(plain, row))
                    ]
        return cls(result, bars, tuple(misses))

    @classmethod
    def load(cls, path: Path) -> FilterReport:
        """Read a report from its JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_record(path, self)

    def missed(self, language: str, condition: str, temperature: float) -> frozenset[FilterFigure]:
        """The figures of the row of these three that miss their bar."""
        key = (language, condition, temperature)
        return frozenset(
            miss.figure for miss in self.misses if (miss.language, miss.condition, miss.temperature) == key
        )
