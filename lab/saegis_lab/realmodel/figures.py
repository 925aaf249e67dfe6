"""The figures of a run: one record for each SAE seed, kept as JSON, and its tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.filter_report import FilterReport, barred_figures
from saegis_lab.evaluation.preference import Preference, PreferenceResult
from saegis_lab.realmodel.compliance import Compliance
from saegis_lab.realmodel.landmark import LandmarkResult
from saegis_lab.records import Record, read_record, read_text, write_record


@dataclass(frozen=True, slots=True)
class SAEFigures(Record):
    """An SAE of `features` features, trained on `tokens` activations; fvu, l0 and dead as `Measured` has
    them, on `measured_tokens` held-out tokens."""

    features: int
    tokens: int
    fvu: float
    l0: float
    dead: float
    measured_tokens: int

    @classmethod
    def of(cls, folder: Path) -> SAEFigures:
        """What an SAE's folder states. Raises InputFileError where it cannot be read."""
        told = json.loads(read_text(folder / "cfg.json"))
        known = told["metadata"]
        return cls(
            features=told["d_sae"],
            tokens=known["training_tokens"],
            fvu=known["fvu"],
            l0=known["l0"],
            dead=known["dead"],
            measured_tokens=known["measured_tokens"],
        )


@dataclass(frozen=True, slots=True)
class FilteredLanguage(Record):
    """What a filter does in one language, greedy, as a user receives it.

    words: harmful words an answer to a harmful prompt; refused: the share of those prompts; lost: that of
    benign ones, refused or stopped; each without rules and under the filter. false_alarms: of the benign ones
    that are answered without harm when there are no rules, the share that the filter takes; None where there
    are none. kl: nats a token on benign text. perplexity: of the answers to harmful prompts, over that of
    ordinary answers; None where none has a text.
    """

    language: str
    words: tuple[float, float]
    refused: tuple[float, float]
    lost: tuple[float, float]
    false_alarms: float | None
    kl: float
    perplexity: float | None
    preference: tuple[Preference, Preference]

    @property
    def times_less(self) -> float | None:
        """How many times less harm there is under the filter, infinite where none is left; None where there
        is none without it."""
        before, after = self.words
        if not before:
            return None
        return before / after if after else math.inf


@dataclass(frozen=True, slots=True)
class AttackedLanguage(Record):
    """What comes back under one attack in one language, see `AttackRow`."""

    language: str
    attack: str
    back: float | None
    worst_back: float | None


@dataclass(frozen=True, slots=True)
class SeedFigures(Record):
    """All figures of a seed. attacks and landmark: empty and None where they were not measured."""

    seed: int
    site: str
    chosen_from: tuple[str, ...]
    sae: SAEFigures
    compliance: Compliance
    filtered: tuple[FilteredLanguage, ...]
    missed: tuple[str, ...]
    attacks: tuple[AttackedLanguage, ...]
    landmark: LandmarkResult | None

    @classmethod
    def load(cls, path: Path) -> SeedFigures:
        """Read them from their JSON. Raises InputFileError."""
        return read_record(cls, path)

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_record(path, self)


def filtered_languages(
    report: FilterReport, preferences: PreferenceResult
) -> tuple[tuple[FilteredLanguage, ...], tuple[str, ...]]:
    """The whole filter's figures by language, and every bar that it misses, in words."""
    result = report.result
    whole, temperature = result.conditions[1].name, result.decodings[0].temperature
    preferred = {row.language: (row.plain, row.filtered) for row in preferences.rows}
    rows = []
    for code in result.languages:
        plain, under = (result.row(code, name, temperature) for name in (result.unfiltered, whole))
        barred = barred_figures(plain, under)
        harmful, benign = (plain.harmful, under.harmful), (plain.benign, under.benign)
        rows.append(
            FilteredLanguage(
                language=code,
                words=_both(None if each is None else each.harm.amount for each in harmful),
                refused=_both(None if each is None else each.refused for each in harmful),
                lost=_both(None if each is None else each.lost for each in benign),
                false_alarms=result.row(code, whole, temperature).false_alarms,
                kl=barred.kl or 0.0,
                perplexity=barred.perplexity,
                preference=preferred[code],
            )
        )
    return tuple(rows), tuple(miss.told for miss in report.misses if miss.condition == whole)


def _both(values: Iterable[float | None]) -> tuple[float, float]:
    before, after = (value or 0.0 for value in values)
    return before, after


def attacked_languages(report: AttackReport) -> tuple[AttackedLanguage, ...]:
    """What comes back under the whole filter, by attack and then by language."""
    whole = report.result.conditions[1].name
    return tuple(
        AttackedLanguage(row.language, row.attack, row.back, row.worst_back)
        for row in report.result.rows
        if row.condition == whole
    )


def compliance_table(result: Compliance) -> Table:
    """A row for each language."""
    table = Table(
        *("language", "harmful: refused", "with harm", "harmful words", "benign: refused", "with harm"),
        title=f"{result.model}, greedy",
        title_justify="left",
    )
    for row in result.rows:
        table.add_row(
            row.language,
            f"{row.harmful_refused:.0%}",
            f"{row.harmful_answers:.0%}",
            f"{row.harmful_words:.2f}",
            f"{row.benign_refused:.0%}",
            f"{row.benign_harm:.0%}",
        )
    return table


def saes_table(seeds: Sequence[SeedFigures]) -> Table:
    """A row for each seed's SAE."""
    table = Table("seed", "features", "trained on", "FVU", "L0", "dead", "held-out tokens", title="SAEs")
    for figures in seeds:
        sae = figures.sae
        counted = (f"{sae.features:,}", f"{sae.tokens:,}")
        shares = (f"{sae.fvu:.3f}", f"{sae.l0:.1f}", f"{sae.dead:.1%}")
        table.add_row(str(figures.seed), *counted, *shares, f"{sae.measured_tokens:,}")
    return table


def filtered_table(figures: SeedFigures) -> Table:
    """A row for each language."""
    sae = figures.sae
    table = Table(
        *("language", "harmful words", "times less", "refused", "benign lost", "false alarms"),
        *("KL", "× perplexity", "harm preferred", "margin"),
        title=f"seed {figures.seed}: {sae.features} features, FVU {sae.fvu:.3f}, L0 {sae.l0:.1f}, "
        f"dead {sae.dead:.1%}; chosen from {', '.join(figures.chosen_from)}",
        title_justify="left",
    )
    for row in figures.filtered:
        plain, under = row.preference
        table.add_row(
            row.language,
            f"{row.words[0]:.2f} → {row.words[1]:.2f}",
            _times(row.times_less),
            f"{row.refused[0]:.0%} → {row.refused[1]:.0%}",
            f"{row.lost[0]:.1%} → {row.lost[1]:.1%}",
            _share(row.false_alarms),
            f"{row.kl:.4f}",
            "–" if row.perplexity is None else f"{row.perplexity:.2f}",
            f"{plain.share:.0%} → {under.share:.0%}",
            f"{plain.margin:.2f} → {under.margin:.2f}",
        )
    return table


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def seeds_table(seeds: Sequence[SeedFigures]) -> Table:
    """A row for each language: how many times less harm, over seeds with the same languages."""
    names = (f"seed {figures.seed}" for figures in seeds)
    told = ("least", "benign lost, most", "false alarms, most")
    table = Table("language", *names, *told, title="times less harm", title_justify="left")
    for rows in zip(*(figures.filtered for figures in seeds), strict=True):
        less = [row.times_less for row in rows]
        lost = max(max(0.0, row.lost[1] - row.lost[0]) for row in rows)
        least = min((value for value in less if value is not None), default=None)
        alarms = max((row.false_alarms for row in rows if row.false_alarms is not None), default=None)
        table.add_row(rows[0].language, *map(_times, less), _times(least), f"{lost:.1%}", _share(alarms))
    return table


def attacked_table(figures: SeedFigures) -> Table:
    """A row for each attack: the share of the harm that comes back, mean over the languages, and the most."""
    table = Table(
        "attack", "back, mean", "worst language", title="harm that comes back", title_justify="left"
    )
    for attack in dict.fromkeys(row.attack for row in figures.attacks):
        there = [row for row in figures.attacks if row.attack == attack and row.back is not None]
        if there:
            worst = max(there, key=lambda row: row.back or 0.0)
            average = mean(row.back or 0.0 for row in there)
            table.add_row(attack, f"{average:.1%}", f"{worst.language} {worst.back or 0.0:.1%}")
    return table
