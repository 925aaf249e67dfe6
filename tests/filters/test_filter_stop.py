"""The stop: its readings against a loop, and where it ends an answer against the server's own evaluator."""

import random

import pytest
import torch
from torch import Tensor

from saegis_lab.evaluation.experiment import Prompt
from saegis_lab.filters.direction import activations
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import Stop, StopReading, make_stop, stop_readings
from saegis_lab.filters.trials import Answered
from saegis_server.steering.conditions import AnyOf, Condition, Literal, Scope
from saegis_server.steering.evaluator import TextConditions
from tests.filters import world


def answered(seed: int, prefilled: int = 0, harmful: bool = True) -> Answered:
    chance = random.Random(seed)
    tokens = [chance.randrange(32, 120) for _ in range(30)]
    asked, answer = (256, *tokens[: 6 + prefilled]), tokens[10 : 10 + chance.randint(3, 20)]
    return Answered(Prompt("x", "en", harmful), asked, tuple(answer), "", prefilled)


@pytest.mark.parametrize("prefilled", [0, 3])
def test_answers_end_where_the_servers_condition_holds(prefilled: int) -> None:
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
    for each, told, f in zip(texts, Stop(readings).cut(subject, texts), values, strict=True):
        # The server leaves the first token unread.
        holds = TextConditions((condition,), len(features)).read(f[1:].double(), each.begins - 1)[:, 0]
        places = [place + 1 for place in holds.nonzero()[:, 0].tolist()]
        assert told.stopped == bool(places)
        kept = max(0, places[0] - len(each.asked)) if places else len(each.answer)
        assert told.answer == each.answer[:kept]
        ended += told.stopped
    assert 0 < ended < len(texts)


def test_readings_are_above_everything_quiet_and_reached_by_what_is_harmful() -> None:
    recipe = FilterRecipe(stop_margin=1.5, stop_floor=0.25)
    quiet = [torch.tensor([[1.0, 0.0, 3.0], [2.0, 0.1, 0.0]])]
    harmful = [torch.tensor([[0.0, 2.4, 4.0]]), torch.tensor([[7.0, 0.0, 0.0]])]
    readings = stop_readings(quiet, harmful, {4: 8.0, 6: 10.0, 7: 9.0}, recipe)
    # 4: over 1.5 · 2, of a maximum of 8. 6: 0.25 of 10 and 7: 1.5 · 3, which nothing reaches.
    assert readings == (StopReading(4, 0.375, 3.0),)


def test_no_quiet_answer_and_some_harmful_one_is_ended() -> None:
    subject = world.subject()
    quiet = [answered(seed, harmful=False) for seed in range(6)]
    harmful = [answered(seed) for seed in range(6, 40)]
    largest: Tensor = torch.cat(
        [
            subject.sae.encode(x[1:])
            for x in activations(subject, [each.conversation for each in (*quiet, *harmful)])
        ]
    ).amax(0)
    maxima = {feature: float(largest[feature]) for feature in range(12) if largest[feature] > 0.0}
    stop = make_stop(subject, quiet, harmful, [], maxima, FilterRecipe(stop_margin=1.01))
    assert stop is not None
    assert not any(told.stopped for told in stop.cut(subject, quiet))
    assert any(told.stopped for told in stop.cut(subject, harmful))
