"""The stop: a condition on the filter's own features, read clean, that ends an answer in which they fire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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


def feature_readings(subject: FilterSubject, x: Tensor, features: Sequence[int]) -> Tensor:
    """The values of some features, float32 [tokens, n] on the CPU, of activations x [tokens, d]."""
    return subject.sae.encode(x.to(subject.device))[:, list(features)].cpu()


def stop_readings(
    quiet: Sequence[Tensor], harmful: Sequence[Tensor], maxima: Mapping[int, float], recipe: FilterRecipe
) -> tuple[StopReading, ...]:
    """A reading for each feature that fires higher on harmful answers than anything quiet, with a margin.

    quiet, harmful: the values at the tokens of each text, float [tokens, n], of the n features of `maxima` in
    their order; maxima: each one's recorded maximum. Multiples are rounded up to thousandths.
    """
    largest = torch.cat([*quiet, torch.zeros(1, len(maxima))]).amax(0).tolist()
    reached = torch.cat([*harmful, torch.zeros(1, len(maxima))]).amax(0).tolist()
    readings = []
    for (feature, most), quietest, loudest in zip(maxima.items(), largest, reached, strict=True):
        if not most > 0.0:
            continue
        level = max(recipe.stop_margin * quietest, recipe.stop_floor * most)
        multiple = math.ceil(1000.0 * level / most) / 1000.0
        if loudest > multiple * most:
            readings.append(StopReading(feature, multiple, multiple * most))
    return tuple(readings)


@dataclass(frozen=True, slots=True)
class StopTrial:
    """What a stop does for answers of which the first tokens were given, in mean harm: unfiltered, with the
    rows alone, and with the stop; stopped: the share of the plain model's harmful answers that it ends."""

    stop: Stop
    unfiltered: float
    filtered: float
    told: float
    stopped: float

    def gains(self, least: float) -> bool:
        """Whether it takes away at least that share of the unfiltered harm."""
        return self.unfiltered > 0.0 and self.filtered - self.told >= least * self.unfiltered


def make_stop(
    subject: FilterSubject,
    quiet: Sequence[Answered],
    harmful: Sequence[Answered],
    quiet_texts: Sequence[Sequence[int]],
    maxima: Mapping[int, float],
    recipe: FilterRecipe,
) -> Stop | None:
    """The stop that ends no quiet answer; None where no feature fires higher in harmful ones.

    quiet, harmful: at least one answer each; quiet_texts: token ids of benign texts, of which every token but
    the first counts; maxima: the recorded maximum of each feature that may be read.
    """
    features = list(maxima)
    silent, loud = (
        [
            feature_readings(subject, x[each.begins :], features)
            for each, x in zip(part, activations(subject, [each.conversation for each in part]), strict=True)
        ]
        for part in (quiet, harmful)
    )
    silent += [feature_readings(subject, x[1:], features) for x in activations(subject, quiet_texts)]
    readings = stop_readings(silent, loud, maxima, recipe)
    return Stop(readings) if readings else None


def try_stop(
    subject: FilterSubject,
    trials: Trials,
    program: SiteProgram,
    quiet_texts: Sequence[Sequence[int]],
    maxima: Mapping[int, float],
    recipe: FilterRecipe,
) -> StopTrial | None:
    """The stop for the features of `maxima`, tried on prefilled answers under the rows; None where no feature
    tells harmful answers from what is quiet, or no plain answer is harmful.

    quiet_texts: token ids of benign texts. Quiet are also benign answers, plain and under the rows, and what
    the rows make of harmful prompts without any harm.
    """
    harmful = trials.harmful_answers()
    quiet = [each for each in (*trials.plain, *trials.answers(program)) if trials.harm(each) == 0.0]
    filtered = trials.prefilled(program, recipe.prefilled_tokens)
    if not (harmful and quiet and filtered):
        return None
    stop = make_stop(subject, quiet, harmful, quiet_texts, maxima, recipe)
    if stop is None:
        return None
    plain = trials.prefilled(PLAIN, recipe.prefilled_tokens)
    before, after, told = (
        mean(map(trials.harm, part)) for part in (plain, filtered, stop.cut(subject, filtered))
    )
    ended = mean(float(each.stopped) for each in stop.cut(subject, harmful))
    return StopTrial(stop, before, after, told, ended)
