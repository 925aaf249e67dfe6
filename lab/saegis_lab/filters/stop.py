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
class TurnMarker:
    """A direction that tells the last token before an answer from those of answers: float32 [d], of length 1.

    There its reading is above `level`, and in answers below it.
    """

    vector: Tensor
    level: float


@dataclass(frozen=True, slots=True)
class Stop:
    """A sticky condition: any of the readings at one of the last `window` tokens, and the marker at none.

    So the end of the prompt is not judged, where features say what was asked, but the answer is. Without a
    marker the prompt's last `window` tokens are judged too.
    """

    readings: tuple[StopReading, ...]
    window: int
    marker: TurnMarker | None = None

    def holds(self, x: Tensor, subject: FilterSubject) -> Tensor:
        """Whether it holds at each of some tokens that follow each other, bool [tokens]; x: their clean
        activations, float32 [tokens, d]."""
        levels = torch.tensor([reading.level for reading in self.readings])
        features = [reading.feature for reading in self.readings]
        over = _lately((feature_readings(subject, x, features) > levels).any(1), self.window)
        if self.marker is None:
            return over
        return over & ~_lately(x @ self.marker.vector > self.marker.level, self.window)

    def cut(self, subject: FilterSubject, answered: Sequence[Answered]) -> tuple[Answered, ...]:
        """The answers as they are told under the condition: each ends before the token that it stops."""
        told = []
        read = activations(subject, [each.conversation for each in answered])
        for each, x in zip(answered, read, strict=True):
            # It is judged from the last token of the prompt on, with those before it in its window.
            begins = max(1, each.begins - self.window)
            held = self.holds(x[begins:], subject)[each.begins - 1 - begins :].nonzero()[:, 0].tolist()
            if not held:
                told.append(each)
                continue
            kept = each.answer[: max(0, each.begins - 1 + held[0] - len(each.asked))]
            told.append(replace(each, answer=kept, text=subject.text(kept), stopped=True))
        return tuple(told)


def _lately(truths: Tensor, window: int) -> Tensor:
    """Whether each truth, bool [tokens], or one of the `window` − 1 before it is true."""
    padded = torch.cat([truths.new_zeros(window - 1), truths])
    return padded.unfold(0, window, 1).any(1)


def feature_readings(subject: FilterSubject, x: Tensor, features: Sequence[int]) -> Tensor:
    """The values of some features, float32 [tokens, n] on the CPU, of activations x [tokens, d]."""
    return subject.sae.encode(x.to(subject.device))[:, list(features)].cpu()


def turn_marker(before: Tensor, within: Tensor) -> TurnMarker | None:
    """The marker from activations at the last token before answers and at those of answers, both [tokens, d]:
    the difference of their means, with its level in the middle of the gap; None where there is no gap."""
    difference = before.double().mean(0) - within.double().mean(0)
    length = difference.norm()
    if not length > 0.0:
        return None
    vector = (difference / length).float()
    lowest, highest = float((before @ vector).min()), float((within @ vector).max())
    return TurnMarker(vector, 0.5 * (lowest + highest)) if lowest > highest else None


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
    groups = [
        list(zip(part, activations(subject, [each.conversation for each in part]), strict=True))
        for part in (quiet, harmful)
    ]
    before = torch.stack([x[each.begins - 1] for part in groups for each, x in part])
    within = torch.cat([x[each.begins :] for part in groups for each, x in part])
    texts = [x[1:] for x in activations(subject, quiet_texts)]
    marker = turn_marker(before, within) if len(within) else None
    # Without a marker the end of the prompt is judged, so what is read there must not end an answer either.
    early = recipe.stop_window if marker is None else 0
    parts = [[x[max(1, each.begins - early) :] for each, x in part] for part in groups]
    silent, loud = (
        [feature_readings(subject, x, features) for x in part] for part in (parts[0] + texts, parts[1])
    )
    readings = stop_readings(silent, loud, maxima, recipe)
    return Stop(readings, recipe.stop_window, marker) if readings else None


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
