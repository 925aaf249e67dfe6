"""The stop: a condition on the filter's own features, read clean, that ends an answer in which they fire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from saegis_lab.evaluation.figures import mean
from saegis_lab.filters.direction import activations
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_lab.filters.trials import Answered, Trials
from saegis_lab.records import Record
from saegis_server.steering.program import SiteProgram


@dataclass(frozen=True, slots=True)
class StopReading(Record):
    """A feature that ends an answer above `multiple` of its recorded maximum: `level` in its own unit."""

    feature: int
    multiple: float
    level: float

    @classmethod
    def above(cls, feature: int, level: float, maximum: float) -> Self:
        """The reading whose level is this one or hardly higher: the multiple of the recorded maximum, which
        is above 0, is rounded up to thousandths."""
        multiple = math.ceil(1000.0 * level / maximum) / 1000.0
        return cls(feature, multiple, multiple * maximum)


@dataclass(frozen=True, slots=True)
class Stop(Record):
    """A sticky condition over the answer: any of the readings at one of its tokens, what was prefilled of it
    among them. The prompt is not judged: what its last tokens tell is what was asked."""

    readings: tuple[StopReading, ...]

    def holds(self, x: Tensor, subject: FilterSubject) -> Tensor:
        """Whether it holds at each of some tokens by itself, bool [tokens]; x: their clean activations,
        float32 [tokens, d]."""
        levels = torch.tensor([reading.level for reading in self.readings])
        features = [reading.feature for reading in self.readings]
        return (feature_readings(subject, x, features) > levels).any(1)

    def cut(self, subject: FilterSubject, answered: Sequence[Answered]) -> tuple[Answered, ...]:
        """The answers as they are told under the condition: each ends before the token that it stops."""
        told = []
        read = activations(subject, [each.conversation for each in answered])
        for each, x in zip(answered, read, strict=True):
            held = self.holds(x[each.begins :], subject).nonzero()[:, 0].tolist()
            if not held:
                told.append(each)
                continue
            kept = each.answer[: max(0, each.begins + held[0] - len(each.asked))]
            told.append(replace(each, answer=kept, text=subject.text(kept), stopped=True))
        return tuple(told)

    def benign_share(
        self, answers: Sequence[Answered], texts: Sequence[Tensor], maxima: Mapping[int, float]
    ) -> float:
        """The share that it ended of benign answers, in the language where that is largest, or that it would
        end of benign texts, whichever is greater. answers: as `cut` gives them; texts: as `quiet_texts` takes
        them."""
        by_language: dict[str, list[bool]] = {}
        for each in answers:
            by_language.setdefault(each.prompt.language, []).append(each.stopped)
        of_feature = {reading.feature: reading.level for reading in self.readings}
        levels = torch.tensor([of_feature.get(feature, math.inf) for feature in maxima])
        ended = [bool((values > levels).any()) for values in texts]
        return max((mean(part) for part in (*by_language.values(), ended) if part), default=0.0)


def feature_readings(subject: FilterSubject, x: Tensor, features: Sequence[int]) -> Tensor:
    """The values of some features, float32 [tokens, n] on the CPU, of activations x [tokens, d]."""
    return subject.sae.encode(x.to(subject.device))[:, list(features)].cpu()


def quiet_texts(texts: Sequence[Tensor], maxima: Mapping[int, float], quantile: float) -> list[Tensor]:
    """The texts without the loudest ones, of which `quantile` of them stay; of few texts all stay.

    texts: the values at the tokens of each, float [tokens, n], of the n features of `maxima` in their order.
    A text is as loud as its largest value in multiples of the feature's maximum.
    """
    most = torch.tensor([maximum if maximum > 0.0 else math.inf for maximum in maxima.values()])
    ordered = sorted(texts, key=lambda values: float((values / most).max()) if len(values) else 0.0)
    return ordered[: math.ceil(quantile * len(ordered))]


def stop_readings(
    quiet: Sequence[Tensor], harmful: Sequence[Tensor], maxima: Mapping[int, float], recipe: FilterRecipe
) -> tuple[StopReading, ...]:
    """A reading for each feature that fires higher on harmful answers than anything quiet, with a margin.

    quiet, harmful: the values at the tokens of each text, float [tokens, n], of the n features of `maxima` in
    their order; maxima: each one's recorded maximum.
    """
    largest = torch.cat([*quiet, torch.zeros(1, len(maxima))]).amax(0).tolist()
    reached = torch.cat([*harmful, torch.zeros(1, len(maxima))]).amax(0).tolist()
    readings = []
    for (feature, most), quietest, loudest in zip(maxima.items(), largest, reached, strict=True):
        if not most > 0.0:
            continue
        level = max(recipe.stop_margin * quietest, recipe.stop_floor * most)
        reading = StopReading.above(feature, level, most)
        if loudest > reading.level:
            readings.append(reading)
    return tuple(readings)


@dataclass(frozen=True, slots=True)
class StopTrial:
    """What a stop does for answers of which the first tokens were given, in mean harm: unfiltered, with the
    rows alone, and with the stop; stopped: the share of the plain model's harmful answers that it ends;
    benign_stopped: the share of benign answers under the rows, in the language where it is largest, or of
    benign texts, whichever is greater."""

    stop: Stop
    unfiltered: float
    filtered: float
    told: float
    stopped: float
    benign_stopped: float

    def pays(self, recipe: FilterRecipe) -> bool:
        """Whether it takes away enough of the unfiltered harm, and what is benign keeps its bar."""
        least = recipe.least_part_gain * self.unfiltered
        gains = self.unfiltered > 0.0 and self.filtered - self.told >= least
        return gains and self.benign_stopped <= recipe.bars.max_lost


def make_stop(
    subject: FilterSubject,
    quiet: Sequence[Answered],
    harmful: Sequence[Answered],
    benign: Sequence[Tensor],
    maxima: Mapping[int, float],
    recipe: FilterRecipe,
) -> Stop | None:
    """The stop that ends no quiet answer, and of benign texts few; None where no feature fires higher in
    harmful answers.

    quiet, harmful: at least one answer each; benign: the values at the tokens of benign texts, as
    `quiet_texts` takes them; maxima: the recorded maximum of each feature that may be read.
    """
    features = list(maxima)
    silent, loud = (
        [
            feature_readings(subject, x[each.begins :], features)
            for each, x in zip(part, activations(subject, [each.conversation for each in part]), strict=True)
        ]
        for part in (quiet, harmful)
    )
    silent += quiet_texts(benign, maxima, recipe.stop_quantile)
    readings = stop_readings(silent, loud, maxima, recipe)
    return Stop(readings) if readings else None


def try_stop(
    subject: FilterSubject,
    trials: Trials,
    program: SiteProgram,
    peaks: Tensor,
    maxima: Mapping[int, float],
    recipe: FilterRecipe,
) -> StopTrial | None:
    """The stop for the features of `maxima`, tried on prefilled answers under the rows; None where no feature
    tells harmful answers from what is quiet, or no plain answer is harmful.

    peaks: the largest activation of each feature in each benign text, float32 [texts, m]. Quiet are also
    benign answers, plain and under the rows, and what the rows make of harmful prompts without any harm.
    """
    harmful, under = trials.harmful_answers(), trials.answers(program)
    quiet = [each for each in (*trials.plain, *under) if trials.harm(each) == 0.0]
    filtered = trials.prefilled(program, recipe.prefilled_tokens)
    if not (harmful and quiet and filtered):
        return None
    benign = list(peaks[:, None, list(maxima)])
    stop = make_stop(subject, quiet, harmful, benign, maxima, recipe)
    if stop is None:
        return None
    plain = trials.prefilled(PLAIN, recipe.prefilled_tokens)
    before, after, told = (
        mean(map(trials.harm, part)) for part in (plain, filtered, stop.cut(subject, filtered))
    )
    ended = mean(float(each.stopped) for each in stop.cut(subject, harmful))
    answers = stop.cut(subject, [each for each in under if not each.prompt.harmful])
    return StopTrial(stop, before, after, told, ended, stop.benign_share(answers, benign, maxima))
