"""The step as the compiler traces it: without a break, and once for every program and prompt.

Only the compiler's front end runs here, for that is where a graph breaks or a recompilation begins. Whether
the machine code is right is for test_compiled.py.
"""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from saegis_server.engine.api import UNGUARDED, SamplingParams, rows_of
from saegis_server.engine.counts import Observed
from saegis_server.engine.torch.warmup import warm_up
from tests.engine import tiny
from tests.engine.hooked import random_program
from tests.engine.test_activity import FIRST, ask, probe


@pytest.fixture
def tracing(unmeasured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled runs as it was traced."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(tracing: None) -> Iterator[tiny.RunningEngine]:
    """A warm engine that runs its step as it was traced."""
    step = tiny.step(tiny.model(), compiled=True)
    warm_up(step, lambda *_: None)
    with tiny.RunningEngine(step) as engine:
        yield engine


def answers(engine: tiny.RunningEngine) -> list[list[int]]:
    """The tokens of answers to prompts of many lengths, under programs of many sizes, whatever is counted."""
    asked = []
    for seed in range(30):
        sampling = SamplingParams(
            temperature=float(seed % 3), seed=seed, max_tokens=1 + seed % 5, ignore_eos=True
        )
        program = random_program(seed, seed)
        groups = tuple(frozenset((name,)) for name, _ in rows_of(program, UNGUARDED))[: seed % 7]
        asked.append(ask(engine, tiny.prompt_of(seed, 1 + seed), sampling, program=program, groups=groups))
        if seed % 10 == 9:
            engine.engine.observe([Observed(FIRST, probe(seed + number)) for number in range(seed % 4)])
    return [answer.wait(60).tokens() for answer in asked]


def test_what_is_asked_has_nothing_traced_again(traced: tiny.RunningEngine) -> None:
    assert counters["stats"]["unique_graphs"] == 3, "the warm-up traces prefill, decode and the sampler"
    got = answers(traced)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["recompiles"]
    assert not counters["graph_break"]
    with tiny.RunningEngine(tiny.step(tiny.model())) as eager:
        assert got == answers(eager)


def test_steps_of_two_models_of_one_shape_are_never_taken_for_each_other(tracing: None) -> None:
    """Their models are not told apart by what is checked at a call, so each has programs of its own."""
    models = [tiny.model(seed=seed) for seed in range(2)]
    models[1].get_parameter("model.layers.0.mlp.down_proj.weight").data *= 2.0
    texts: dict[bool, list[list[int]]] = {}
    for compiled in (False, True):
        engines = [tiny.RunningEngine(tiny.step(model, compiled=compiled)) for model in models]
        for engine in engines:
            warm_up(engine.step, lambda *_: None)
        with engines[0], engines[1]:
            answers = [engine.ask(tiny.prompt_of(3, 9)) for engine in (*engines, *engines)]
            texts[compiled] = [answer.wait(60).tokens() for answer in answers]
    assert texts[True] == texts[False]
    assert texts[True][0] != texts[True][1]
