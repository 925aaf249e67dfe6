"""The stop: its readings against a loop, and where it ends an answer against the server's own evaluator."""

import math
import random
from dataclasses import replace

import pytest
import torch

from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.filters.direction import activations
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import (
    Stop,
    StopReading,
    StopTrial,
    answer_peaks,
    stop_readings,
    telling_features,
)
from saegis_lab.filters.trials import Answered
from saegis_lab.training.texts import LabelledText
from saegis_server.steering.conditions import AnyOf, Condition, Literal, Scope
from saegis_server.steering.evaluator import TextConditions
from tests.filters import world


def answered(seed: int, prefilled: int = 0, harmful: bool = True, language: str = "en") -> Answered:
    chance = random.Random(seed)
    tokens = [chance.randrange(32, 120) for _ in range(30)]
    asked, answer = (256, *tokens[: 6 + prefilled]), tokens[10 : 10 + chance.randint(3, 20)]
    return Answered(Prompt("x", language, harmful), asked, tuple(answer), "", prefilled)


@pytest.mark.parametrize(("prefilled", "hold"), [(0, 0), (3, 0), (0, 4), (3, 4)])
def test_answers_end_where_the_servers_condition_holds(prefilled: int, hold: int) -> None:
    subject = world.subject()
    features = (3, 5, 9)
    texts = [answered(seed, prefilled) for seed in range(24)]
    read = activations(subject, [each.conversation for each in texts])
    values = [subject.sae.encode(x)[:, list(features)] for x in read]
    everything = torch.cat(values)
    levels = [float(everything[:, column].quantile(0.97)) + 1e-3 for column in range(len(features))]
    readings = tuple(StopReading(each, 1.0, most) for each, most in zip(features, levels, strict=True))
    expression = AnyOf(tuple(Literal(place, most) for place, most in enumerate(levels)))
    condition = Condition(expression, Scope.ANSWER)
    ended = 0
    for each, told, f in zip(texts, Stop(readings, hold).cut(subject, texts), values, strict=True):
        # The server leaves the first token unread.
        holds = TextConditions((condition,), len(features)).read(f[1:].double(), each.begins - 1)[:, 0]
        places = [place + 1 for place in holds.nonzero()[:, 0].tolist()]
        assert told.stopped == bool(places)
        kept = max(0, places[0] - hold - len(each.asked)) if places else len(each.answer)
        assert told.answer == each.answer[:kept]
        ended += told.stopped
    assert 0 < ended < len(texts)


def test_readings_are_above_everything_quiet_and_reached_by_what_is_harmful() -> None:
    recipe = FilterRecipe(stop_margin=1.5, stop_floor=0.25)
    quiet = torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.1, 0.0]])
    harmful = torch.tensor([[0.0, 2.4, 4.0], [7.0, 0.0, 0.0]])
    readings = stop_readings(quiet, harmful, {4: 8.0, 6: 10.0, 7: 9.0}, recipe)
    # 4: over 1.5 · 2, of a maximum of 8. 6: 0.25 of 10 and 7: 1.5 · 3, which nothing reaches.
    assert readings == (StopReading(4, 0.375, 3.0),)


def test_what_tells_of_a_subject_is_loud_in_its_texts_in_every_language_and_nowhere_else() -> None:
    texts = [
        LabelledText("", label, language, label == "poison")
        for language in ("en", "ru")
        for label in ("poison", "poison", "bread", "tea")
    ]
    recipe = FilterRecipe(telling_each=2, least_telling=0.5, stop_margin=1.5, stop_quantile=1.0)
    columns = {
        "loud in all": (4, 4, 1, 0, 4, 4, 0, 1),
        "loud in half": (4, 1, 1, 0, 1, 4, 0, 1),
        "in a language alone": (9, 9, 0, 0, 0, 0, 0, 0),
        "within the margin": (4, 4, 3, 0, 4, 4, 0, 1),
        "never": (0, 0, 0, 0, 0, 0, 0, 0),
    }
    peaks = torch.tensor([list(map(float, column)) for column in columns.values()]).T
    assert telling_features(peaks, texts, ("en", "ru"), recipe) == (0, 1)
    assert telling_features(peaks, texts, ("en", "ru"), replace(recipe, telling_each=1)) == (0,)
    assert telling_features(peaks, texts, ("en", "ru"), replace(recipe, telling_each=0)) == ()
    assert telling_features(peaks, texts, ("en", "ru"), replace(recipe, stop_margin=1.0)) == (0, 3)


def test_the_largest_activations_are_those_of_the_answer_alone() -> None:
    subject = world.subject()
    texts = [answered(seed, prefilled) for seed in range(6) for prefilled in (0, 3)]
    peaks = answer_peaks(subject, texts, [3, 5, 9])
    for row, each, x in zip(
        peaks, texts, activations(subject, [each.conversation for each in texts]), strict=True
    ):
        values = subject.sae.encode(x)[len(each.asked) - each.prefilled :, [3, 5, 9]]
        assert torch.equal(row, values.amax(0))
    assert peaks.count_nonzero() > 0


def test_what_is_ended_of_what_is_benign_is_that_of_the_worst_language_or_of_the_texts() -> None:
    stop = Stop((StopReading(4, 0.5, 2.0), StopReading(6, 0.5, 3.0)))
    answers = [
        replace(answered(seed, harmful=False, language=code), stopped=stopped)
        for seed, (code, stopped) in enumerate([("en", False), ("en", True), ("zh", False), ("zh", False)])
    ]
    texts = torch.zeros(3, 8)
    texts[:, [4, 5, 6]] = torch.tensor([[2.0, 9.0, 3.0], [2.1, 0.0, 0.0], [0.0, 0.0, 3.1]])
    assert stop.benign_share([], texts[:0]) == 0.0
    assert stop.benign_share(answers, texts[:0]) == 0.5
    assert stop.benign_share(answers, texts) == pytest.approx(2 / 3)
    assert stop.benign_share(answers[2:], texts[:1]) == 0.0


def test_a_stop_is_kept_for_what_it_takes_away_while_what_is_benign_keeps_its_bar() -> None:
    recipe = FilterRecipe(least_part_gain=0.25)
    bar = recipe.bars.max_lost
    trial = StopTrial(
        Stop(()), unfiltered=4.0, filtered=2.0, told=1.0, stopped=0.4, benign_stopped=bar, left=0.2
    )
    assert not trial.leaks(recipe)
    assert replace(trial, left=0.25).leaks(recipe)
    assert trial.pays(recipe)
    assert not replace(trial, told=1.001).pays(recipe)
    assert replace(trial, told=2.0, stopped=0.5).pays(recipe)
    assert not replace(trial, benign_stopped=math.nextafter(bar, 1.0)).pays(recipe)
    assert not replace(trial, unfiltered=0.0, filtered=0.0, told=0.0).pays(recipe)
