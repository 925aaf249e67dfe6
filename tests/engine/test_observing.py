"""How often observed features fire, against the loop: whole texts read again, each feature in float64."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saegis_server.engine.api import FirstToken, GenerationRequest
from saegis_server.engine.counts import STRENGTHS, Fired, Observed
from saegis_server.engine.torch.observing import MOST_OBSERVED
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.site import Place, Site
from tests.engine import tiny
from tests.engine.serving import Answer
from tests.engine.test_activity import FIRST, SECOND, ask, greedy, probe, program
from tests.steering import reference

BOS = 256
#: Some with a recorded maximum that their values come close to, some without.
FEATURES = [
    Observed(site, probe(1000 + 10 * place + number, kind), maximum)
    for place, site in enumerate((FIRST, SECOND))
    for number, (kind, maximum) in enumerate((("relu", 1.5), ("jumprelu", 0.8), ("gated", None)))
]
Values = dict[tuple[Site, str], list[float]]


def activations_of(
    asked: SteeringProgram, prompt: Sequence[int], read: Sequence[int]
) -> dict[Site, list[reference.Vector]]:
    """The activation of every token, as it comes into each site under a program."""
    found: dict[Site, list[reference.Vector]] = {FIRST: [], SECOND: []}

    def steer(site: Site, x: Tensor) -> Tensor:
        changed = x.clone()
        own = asked.sites.get(site, SiteProgram())
        for token in range(x.shape[1]):
            clean = reference.vector(x[0, token])
            found[site].append(clean)
            if own.changes_anything and not (token == 0 and prompt[0] == BOS):
                steered = reference.settled(own, clean, token < len(prompt))
                changed[0, token] = torch.from_numpy(steered).to(x.dtype)
        return changed

    model = tiny.model()
    with edited(model, FIRST, lambda x: steer(FIRST, x)), edited(model, SECOND, lambda x: steer(SECOND, x)):
        model(torch.tensor([[*prompt, *read]]))
    return found


def values_of(asked: SteeringProgram, prompt: Sequence[int], read: Sequence[int]) -> Values:
    """The value of every feature at every token."""
    clean = activations_of(asked, prompt, read)
    return {
        (each.site, each.probe.key): [reference.read(each.probe, x) for x in clean[each.site]]
        for each in FEATURES
    }


def fired(values: Sequence[float], maximum: float | None) -> Fired:
    """What a feature of these values did."""
    strengths = [value / maximum if maximum else 0.0 for value in values]
    return Fired(
        sum(value > 0.0 for value in values),
        tuple(sum(strength > bound for strength in strengths) for bound in STRENGTHS),
        math.fsum(strengths),
    )


def check(answer: Answer, asked: SteeringProgram, prompt: Sequence[int]) -> int:
    """Recount one answer; returns on how many tokens anything fired."""
    first = int(prompt[0] == BOS)
    values, total = values_of(asked, prompt, answer.tokens()[:-1]), 0
    firing = answer.finished.firing
    assert set(firing) == set(values)
    for each in FEATURES:
        own = values[each.site, each.probe.key]
        expected = fired(own[first : len(prompt)], each.maximum), fired(own[len(prompt) :], each.maximum)
        for got, wanted in zip(firing[each.site, each.probe.key], expected, strict=True):
            assert got[:2] == wanted[:2]
            assert got.strength == pytest.approx(wanted.strength, rel=1e-4, abs=1e-5)
            total += wanted.tokens
    return total


def test_features_fire_where_the_loop_says() -> None:
    """Prompts with and without the model's first token, of several chunks, steered and not, in one batch."""
    prompts = [[BOS, *tiny.prompt_of(1, 20)], tiny.prompt_of(2, 4), [BOS], [BOS, *tiny.prompt_of(3, 33)]]
    programs = [program(1), UNSTEERED, UNSTEERED, program(2)]
    with tiny.RunningEngine(tiny.step(tiny.model()), first_token=FirstToken(BOS)) as engine:
        engine.engine.observe(FEATURES)
        answers = [
            ask(engine, prompt, greedy(6 + 3 * number), program=asked)
            for number, (prompt, asked) in enumerate(zip(prompts, programs, strict=True))
        ]
        total = sum(
            check(answer.wait(), asked, prompt)
            for answer, asked, prompt in zip(answers, programs, prompts, strict=True)
        )
    assert total > 50


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    prompt = tiny.prompt_of(7, 20)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        engine.engine.observe(FEATURES)
        one, three = (ask(engine, prompt, greedy(6, n)).wait().finished.firing for n in (1, 3))
    for key, (in_prompt, in_answer) in one.items():
        assert three[key][0] == in_prompt
        assert three[key][1].tokens == 3 * in_answer.tokens
        assert three[key][1].strength == pytest.approx(3 * in_answer.strength)


def test_a_feature_that_stays_is_counted_on_and_a_new_one_from_nothing() -> None:
    """The set is replaced while a request runs: its place goes to another feature."""
    stays, goes, comes = FEATURES[0], FEATURES[1], Observed(FIRST, probe(4000))
    prompt, answer = tiny.prompt_of(7, 20), Answer()
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        engine.engine.observe([goes, stays])
        engine.submit(GenerationRequest("r", tuple(prompt), greedy(130)), answer)
        while not answer.tokens():
            pass
        engine.engine.observe([comes, stays])
        firing = answer.wait().finished.firing
    values = values_of(UNSTEERED, prompt, answer.tokens()[:-1])[FIRST, stays.probe.key]
    assert set(firing) == {(FIRST, stays.probe.key), (FIRST, comes.probe.key)}
    kept = firing[FIRST, stays.probe.key]
    assert kept[0].tokens == fired(values[:20], None).tokens
    assert kept[1].tokens == fired(values[20:], None).tokens
    assert firing[FIRST, comes.probe.key][0].tokens == 0


def test_only_what_there_is_room_for_is_observed() -> None:
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        many = [Observed(FIRST, probe(seed)) for seed in range(MOST_OBSERVED + 1)]
        with pytest.raises(ValueError, match="257 features are to be observed"):
            engine.engine.observe(many)
        with pytest.raises(ValueError, match="is not a site of this engine"):
            engine.engine.observe([Observed(Site(9, Place.RESID_POST), probe(1))])
        engine.engine.observe(many[1:])
        answer = ask(engine, tiny.prompt_of(1, 3), greedy(2)).wait()
        assert len(answer.finished.firing) == MOST_OBSERVED
