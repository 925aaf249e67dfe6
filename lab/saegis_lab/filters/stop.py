"""The stop: a condition on the filter's own features, read clean, that ends an answer in which they fire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from saegis_lab.evaluation.figures import mean
from saegis_lab.filters.candidates import by_precision, subject_scores
from saegis_lab.filters.direction import activations
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_lab.filters.trials import Answered, Trials
from saegis_lab.records import Record
from saegis_lab.training.texts import LabelledText
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
    among them. The prompt is not judged: what its last tokens tell is what was asked.

    hold: how many tokens before the one that it stops are kept back with it. A feature of a harmful sentence
    often wakes some words into it.
    """

    readings: tuple[StopReading, ...]
    hold: int = 0

    def holds(self, x: Tensor, subject: FilterSubject) -> Tensor:
        """Whether it holds at each of some tokens by itself, bool [tokens]; x: their clean activations,
        float32 [tokens, d]."""
        levels = torch.tensor([reading.level for reading in self.readings])
        features = [reading.feature for reading in self.readings]
        return (feature_readings(subject, x, features) > levels).any(1)

    def cut(self, subject: FilterSubject, answered: Sequence[Answered]) -> tuple[Answered, ...]:
        """The answers as they are told under the condition: each ends before the tokens that it keeps
        back."""
        told = []
        read = activations(subject, [each.conversation for each in answered])
        for each, x in zip(answered, read, strict=True):
            held = self.holds(x[each.begins :], subject).nonzero()[:, 0].tolist()
            if not held:
                told.append(each)
                continue
            kept = each.answer[: max(0, each.begins + held[0] - self.hold - len(each.asked))]
            told.append(replace(each, answer=kept, text=subject.text(kept), stopped=True))
        return tuple(told)

    def benign_share(self, answers: Sequence[Answered], texts: Tensor) -> float:
        """The share that it ended of benign answers, in the language where that is largest, or that it would
        end of benign texts, whichever is greater. answers: as `cut` gives them; texts: the largest activation
        of each feature in each, float [texts, m]."""
        by_language: dict[str, list[bool]] = {}
        for each in answers:
            by_language.setdefault(each.prompt.language, []).append(each.stopped)
        levels = torch.tensor([reading.level for reading in self.readings])
        features = [reading.feature for reading in self.readings]
        ended: list[bool] = (texts[:, features] > levels).any(1).tolist()
        return max((mean(part) for part in (*by_language.values(), ended) if part), default=0.0)


def feature_readings(subject: FilterSubject, x: Tensor, features: Sequence[int]) -> Tensor:
    """The values of some features, float32 [tokens, n] on the CPU, of activations x [tokens, d]."""
    return subject.sae.encode(x.to(subject.device))[:, list(features)].cpu()


def peaks_from(subject: FilterSubject, rows: Sequence[Sequence[int]], begins: Sequence[int]) -> Tensor:
    """The largest activation of each feature in each text from a place on, float32 [texts, m] on the CPU; 0
    for a text that ends before it. rows: token ids; begins: each text's place."""
    peaks = torch.zeros(len(rows), subject.sae.features)
    for number, (x, begin) in enumerate(zip(activations(subject, rows), begins, strict=True)):
        if len(x) > begin:
            peaks[number] = subject.sae.encode(x[begin:].to(subject.device)).float().cpu().amax(0)
    return peaks


def answer_peaks(subject: FilterSubject, answered: Sequence[Answered], features: Sequence[int]) -> Tensor:
    """The largest activation of some features in each answer, float32 [answers, n] on the CPU."""
    rows, begins = [each.conversation for each in answered], [each.begins for each in answered]
    return peaks_from(subject, rows, begins)[:, list(features)]


def exceeded_by_few(peaks: Tensor, quantile: float) -> Tensor:
    """The least of each feature's values that no more than the share 1 − `quantile` of the items exceeds.

    peaks: float [items, m], at least one item; quantile: above 0; the result float [m].
    """
    left_out = len(peaks) - math.ceil(quantile * len(peaks))
    return peaks.topk(left_out + 1, dim=0).values[-1]


def telling_features(
    peaks: Tensor, texts: Sequence[LabelledText], languages: Sequence[str], recipe: FilterRecipe
) -> tuple[int, ...]:
    """Features of what is said: of each harmful subject up to `recipe.telling_each` that, in at least
    `recipe.least_telling` of its texts in every language, are louder by the stop's margin than in what is
    harmless. peaks: the largest activation of each feature in each text, float32 [texts, m].

    Raises ValueError, naming the language, where one has no harmless or no harmful text.
    """
    if not recipe.telling_each:
        return ()
    harmless = torch.tensor([not text.harmful for text in texts])
    quiet = exceeded_by_few(peaks[harmless], recipe.stop_quantile)
    loud = peaks > recipe.stop_margin * quiet
    scores = subject_scores(loud, texts, languages, recipe.false_weight)
    return tuple(each.feature for each in by_precision(scores, recipe.least_telling, recipe.telling_each))


def stop_readings(
    quiet: Tensor, harmful: Tensor, maxima: Mapping[int, float], recipe: FilterRecipe
) -> tuple[StopReading, ...]:
    """A reading for each feature that fires higher in some harmful answer than in nearly all that is quiet,
    with a margin.

    quiet, harmful: the largest activations in each answer or text, float [items, n], at least one item, of
    the n features of `maxima` in their order; maxima: each one's recorded maximum.
    """
    largest = exceeded_by_few(quiet, recipe.stop_quantile).tolist()
    readings = []
    for (feature, most), quietest, loudest in zip(
        maxima.items(), largest, harmful.amax(0).tolist(), strict=True
    ):
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
    benign texts, whichever is greater; left: the share of the harm in answers from their beginning that is
    left under rows and stop."""

    stop: Stop
    unfiltered: float
    filtered: float
    told: float
    stopped: float
    benign_stopped: float
    left: float

    def leaks(self, recipe: FilterRecipe) -> bool:
        """Whether rows and stop leave harm that another part might take away."""
        return self.left >= recipe.least_part_gain

    def pays(self, recipe: FilterRecipe) -> bool:
        """Whether it takes away enough of the unfiltered harm, or would end enough harmful answers if the
        rows failed, as they may in other languages; and what is benign keeps its bar."""
        least = recipe.least_part_gain * self.unfiltered
        gains = self.filtered - self.told >= least or self.stopped >= recipe.least_heard
        return self.unfiltered > 0.0 and gains and self.benign_stopped <= recipe.bars.max_lost


def try_stop(
    subject: FilterSubject,
    trials: Trials,
    program: SiteProgram,
    peaks: Tensor,
    told: Tensor,
    maxima: Mapping[int, float],
    recipe: FilterRecipe,
) -> StopTrial | None:
    """The stop for the features of `maxima`, tried on prefilled answers under the rows; None where no feature
    tells harmful answers from what is quiet, or no plain answer is harmful.

    peaks, told: the largest activation of each feature in each benign text, and in each harmful one that says
    what answers may, if any; float32 [texts, m]. Quiet are also benign answers, plain and under the rows.
    Refusals are not: a refusal that is ended harms nobody.
    """
    harmful, under = trials.harmful_answers(), trials.answers(program)
    benign = [each for each in (*trials.plain, *under) if not each.prompt.harmful]
    filtered = trials.prefilled(program, recipe.prefilled_tokens)
    if not (harmful and benign and filtered):
        return None
    features = list(maxima)
    quiet = torch.cat([answer_peaks(subject, benign, features), peaks[:, features]])
    loud = torch.cat([answer_peaks(subject, harmful, features), told[:, features]])
    readings = stop_readings(quiet, loud, maxima, recipe)
    if not readings:
        return None
    stop = Stop(readings, recipe.stop_hold)
    plain = trials.prefilled(PLAIN, recipe.prefilled_tokens)
    before, after, received = (
        mean(map(trials.harm, part)) for part in (plain, filtered, stop.cut(subject, filtered))
    )
    ended = mean(float(each.stopped) for each in stop.cut(subject, harmful))
    answers = stop.cut(subject, [each for each in under if not each.prompt.harmful])
    asked = stop.cut(subject, [each for each in under if each.prompt.harmful])
    left = sum(map(trials.harm, asked)) / sum(map(trials.harm, harmful))
    return StopTrial(stop, before, after, received, ended, stop.benign_share(answers, peaks), left)
