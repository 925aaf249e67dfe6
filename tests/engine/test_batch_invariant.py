"""An engine with steps for each sequence alone: no bit of an answer depends on what runs beside it."""

from dataclasses import replace

import pytest

from saegis_server.engine.api import Event, RequestFinished, SamplingParams
from saegis_server.engine.receipts import Timings
from saegis_server.engine.torch.rope import freeze_rope
from tests.engine import tiny
from tests.engine.guarded import Case, random_case
from tests.engine.hooked import random_program
from tests.engine.serving import Answer
from tests.engine.test_isolation import ROPES
from tests.engine.test_readouts import EVERYTHING
from tests.tiers import few, sized

_NO_TIME = Timings(0.0, 0.0, 0.0)


def told(answer: Answer) -> list[Event]:
    """All that a request is told, sequence by sequence, but for how long it took: the tokens' numbers, the
    readings and the receipt among it."""
    last = answer.wait().finished
    by_sequence = sorted(answer.events[:-1], key=lambda event: getattr(event, "index", -1))
    return [*by_sequence, replace(last, timings=_NO_TIME)]


def cases() -> list[Case]:
    """Guarded, steered and sampled requests, of one sequence or two."""
    made = []
    for seed in range(sized(24, 6)):
        case = random_case(seed)
        sampling = replace(case.sampling, logprobs=3, n=1 + seed % 2)
        made.append(replace(case, sampling=sampling))
    return made


def ask(engine: tiny.RunningEngine, case: Case, name: str) -> Answer:
    return engine.ask(case.prompt, case.sampling, case.program, name, guard=case.guard, readouts=EVERYTHING)


@pytest.mark.parametrize("rope", few(list(ROPES), 1))
def test_each_of_many_requests_gets_what_it_gets_alone(rope: str) -> None:
    """Under every kind of RoPE, beside texts past its original length and others that come and go."""
    model = tiny.model(max_position_embeddings=128, rope_parameters=ROPES[rope])
    freeze_rope(model, 160)
    engine = tiny.RunningEngine(tiny.step(model), batch_invariant=True)
    wanted, asked = cases(), []
    with engine:
        alone = [told(ask(engine, case, f"case {number}")) for number, case in enumerate(wanted)]
        for number, case in enumerate(wanted):
            sampling = SamplingParams(seed=number, max_tokens=3 + number % 9, ignore_eos=True)
            program = random_program(number, number % 9)
            beside = engine.ask(tiny.prompt_of(90 + number, 5 + 60 * (number % 3)), sampling, program)
            asked.append((ask(engine, case, f"case {number}"), beside))
        together = [told(answer) for answer, beside in asked if beside.wait()]
    assert together == alone
    assert any(
        event.receipt.steered for events in alone for event in events if isinstance(event, RequestFinished)
    )


def test_the_batch_does_change_bits_where_sequences_share_steps() -> None:
    """Or the test above would show nothing."""
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        alone = told(engine.ask(tiny.prompt_of(1, 9), sampling, request_id="one"))
        others = [engine.ask(tiny.prompt_of(seed, 120)) for seed in range(3)]
        beside = told(engine.ask(tiny.prompt_of(1, 9), sampling, request_id="one"))
        for other in others:
            other.wait()
    assert beside != alone
