"""Calibration: the redirect and the ban that meet the bars in the languages that take part, at least cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from saegis_lab.evaluation.filter_bars import Excess, FilterBars
from saegis_lab.filters.direction import RefusalDirection
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.subject import FilterSubject
from saegis_lab.filters.trials import FilterFigures, Trials
from saegis_lab.records import Record
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm, Phase, Probe, Redirection, ban, redirect


@dataclass(frozen=True, slots=True)
class Setting(Record):
    """The numbers of a filter. factor: units of the direction for each unit of a feature, at the prompt's
    tokens; answer: the factor at the answer's, over that; strength: of the redirect; threshold: in shares of
    each feature's largest activation; ban: the strength of the exact ban behind the redirect, None for
    none."""

    factor: float
    answer: float = 1.0
    strength: float = 0.0
    threshold: float = 0.0
    ban: float | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """What a filter's rows are made of: features with their largest activations, and the direction.

    quiet: up to which activation a feature is left alone, whatever the setting; none for others.
    """

    subject: FilterSubject
    largest: Mapping[int, float]
    direction: RefusalDirection
    quiet: Mapping[int, float] = field(default_factory=dict)

    @staticmethod
    def factors(setting: Setting) -> dict[Phase, float]:
        """The factor at the tokens of each phase in which anything is redirected."""
        if setting.answer == 1.0:
            return {Phase.ALL: setting.factor}
        answer = round(setting.answer * setting.factor, 3)
        return {Phase.PROMPT: setting.factor, **({Phase.COMPLETION: answer} if answer else {})}

    def threshold(self, feature: int, setting: Setting) -> float:
        """Above which activation of a feature it is redirected, in feature units."""
        least = self.quiet.get(feature, 0.0)
        return round(max(least, setting.threshold * self.largest[feature]), 3)

    def program(self, setting: Setting) -> SiteProgram:
        """The rows of a setting."""
        target = Probe.direction(self.direction.vector)
        probes = {feature: self.subject.sae.probe(feature) for feature in self.largest}
        rules = tuple(
            redirect(
                probe,
                factor,
                Redirection(target, setting.strength, self.threshold(feature, setting)),
                phase=phase,
            )
            for phase, factor in self.factors(setting).items()
            for feature, probe in probes.items()
        )
        if setting.ban is None:
            return SiteProgram(rules=rules)
        return SiteProgram(rules=rules, bans=tuple(ban(probe, setting.ban) for probe in probes.values()))


@dataclass(frozen=True, slots=True)
class Trial(Record):
    """A setting and what it does in the languages that take part."""

    setting: Setting
    figures: tuple[FilterFigures, ...]


def natural_factor(norm: float, activation: float) -> float:
    """The factor with which features of this typical activation write the direction at this length.

    Raises ValueError where the features never fire.
    """
    if not activation > 0.0:
        raise ValueError("the features never fire on the harmful texts")
    return norm / activation


def excesses(figures: Iterable[FilterFigures], bars: FilterBars) -> list[Excess]:
    """Every miss of a bar, language by language."""
    return [miss for each in figures for miss in bars.excesses(each.barred)]


#: Where a bar is 0, values count as if it were this.
_LEAST_BAR = 0.01


def cost(trial: Trial, recipe: FilterRecipe) -> tuple[float, ...]:
    """What trials are compared by, less being better: how many bars are missed and by how much, by how much
    the aims are missed, how many harmful prompts are not refused in the worst language; then the factor or
    the KL on benign text, as the recipe prefers, and the size of the rest of the change."""
    missed, beyond = (excesses(trial.figures, bars) for bars in (recipe.bars, recipe.aims))
    over, above = (
        math.fsum((value - bar) / max(bar, _LEAST_BAR) for _, value, bar in misses)
        for misses in (missed, beyond)
    )
    divergence = max(figures.kl for figures in trial.figures)
    setting = trial.setting
    unrefused = max(1.0 - (figures.refused or 0.0) for figures in trial.figures)
    preferred = -setting.factor if recipe.strongest else divergence
    ban_strength = -1.0 if setting.ban is None else setting.ban
    return len(missed), over, above, unrefused, preferred, setting.strength, setting.threshold, ban_strength


@dataclass(frozen=True, slots=True)
class Calibrated(Record):
    """The trials that were made, and the place of the chosen one among them. ban_gain: the harm, in shares of
    the unfiltered, that the best ban behind takes away in the worst language; None where none was tried."""

    trials: tuple[Trial, ...]
    chosen: int
    ban_gain: float | None = None

    @property
    def best(self) -> Trial:
        """The chosen trial."""
        return self.trials[self.chosen]


def calibrate(trials: Trials, rows: Rows, natural: float, recipe: FilterRecipe) -> Calibrated:
    """The setting of least cost: first the factors, then strength and threshold with them, then the ban.

    A ban must take away `recipe.least_part_gain` of the harm in the worst language, and not miss more bars.
    """
    made: list[Trial] = []

    def tried(setting: Setting) -> Trial:
        known = next((trial for trial in made if trial.setting == setting), None)
        if known is None:
            program = rows.program(setting)
            known = Trial(setting, trials.figures(program, trials.answers(program)))
            made.append(known)
        return known

    def least(settings: Sequence[Setting]) -> Trial:
        return min(map(tried, settings), key=lambda trial: cost(trial, recipe))

    swept: list[Setting] = []
    for share in recipe.answer_shares:
        for multiple in recipe.factors:
            swept.append(Setting(round(natural * multiple, 3), share))
            if _harms_benign(tried(swept[-1]), recipe):
                break  # a greater factor moves benign text more
    best = least(swept)
    grid = [
        replace(best.setting, strength=strength, threshold=threshold)
        for strength in recipe.strengths
        for threshold in recipe.thresholds
    ]
    best = least([best.setting, *grid])
    gain = None
    if rows.subject.sae.norm is Norm.NONE and recipe.ban_strengths:
        banned = least([replace(best.setting, ban=strength) for strength in recipe.ban_strengths])
        gain = _most_harm(best) - _most_harm(banned)
        if gain >= recipe.least_part_gain and cost(banned, recipe) < cost(best, recipe):
            best = banned
    return Calibrated(tuple(made), made.index(best), gain)


def _harms_benign(trial: Trial, recipe: FilterRecipe) -> bool:
    """Whether it misses a bar on benign text or benign prompts."""
    return any(miss.figure in ("kl", "lost") for miss in excesses(trial.figures, recipe.bars))


def _most_harm(trial: Trial) -> float:
    return max(figures.harm_left for figures in trial.figures)
