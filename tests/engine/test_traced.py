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
def traced(unmeasured: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tiny.RunningEngine]:
    """A warm engine that runs its step as it was traced."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    step = tiny.step(tiny.model(), compiled=True)
    warm_up(step, lambda *_: None)
    with tiny.RunningEngine(step) as engine:
        yield engine
    torch._dynamo.reset()


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
