"""Isolation: what one request says and does to itself never reaches the others, by a token or by a bit."""

import logging

import pytest
import torch

from saegis_server.engine.api import (
    Event,
    GenerationRequest,
    NonFiniteLogitsError,
    SamplingParams,
    SteeringDivergedError,
)
from saegis_server.engine.readouts import TokenOutput
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.rows import Phase
from tests.engine import tiny
from tests.engine.hooked import destructive
from tests.engine.serving import Answer, Asked, Serving
from tests.tiers import few

TOLD = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def run_four(
    serving: Serving, program: SteeringProgram | None, place: int
) -> tuple[dict[int, list[TokenOutput]], Answer, Asked]:
    """Four requests in one batch, the one at `place` steered; the outputs of the others."""
    engine = serving(tiny.model())
    answers = []
    for seed in range(4):
        steering = program if seed == place and program is not None else UNSTEERED
        answers.append(engine.ask(tiny.prompt_of(seed, 12), TOLD, steering))
    with engine:
        for answer in answers:
            answer.wait()
        answers.append(engine.ask(tiny.prompt_of(9, 20), TOLD).wait())
    return (
        {seed: answers[seed].outputs() for seed in (0, 1, 2, 3, 4) if seed != place},
        answers[place],
        engine,
    )


@pytest.mark.parametrize("place", few([0, 3, 1], 2))
@pytest.mark.parametrize("phase", [Phase.ALL, Phase.COMPLETION])
def test_a_request_that_diverges_fails_alone_and_its_slot_serves_again(
    place: int, phase: Phase, serving: Serving
) -> None:
    wanted, untouched, _ = run_four(serving, None, place)
    assert len(untouched.tokens()) == 12
    got, failed, _ = run_four(serving, destructive(phase), place)
    assert isinstance(failed.failed.error, SteeringDivergedError)
    assert len(failed.tokens()) == (0 if phase is Phase.ALL else 1)
    for seed, outputs in wanted.items():
        # The batch is smaller once the request is out, which may change the last bits of a product.
        tokens = [one.token_id for one in outputs]
        assert [one.token_id for one in got[seed]] == tokens
        mine = torch.tensor([one.logprob for one in got[seed]])
        assert torch.allclose(mine, torch.tensor([one.logprob for one in outputs]), atol=1e-5)


def test_a_sibling_of_a_diverged_sequence_ends_with_its_request(serving: Serving) -> None:
    sampling = SamplingParams(n=3, seed=1, max_tokens=8, ignore_eos=True)
    with serving(tiny.model()) as engine:
        failed = engine.ask(tiny.prompt_of(0, 6), sampling, destructive(Phase.COMPLETION)).wait()
        assert isinstance(failed.failed.error, SteeringDivergedError)
        assert len(engine.ask(tiny.prompt_of(1, 6), sampling).wait().tokens(2)) == 8


def test_an_unsteered_request_whose_logits_are_not_finite_blames_the_model(serving: Serving) -> None:
    broken = tiny.model()
    with torch.no_grad():
        broken.get_parameter("lm_head.weight")[3] = torch.inf
    with serving(broken) as engine:
        assert isinstance(engine.ask([1, 2]).wait().failed.error, NonFiniteLogitsError)


def test_a_sink_that_raises_loses_its_own_request_only(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    heard = []

    def deaf(events: list[Event]) -> None:
        heard.append(events)
        raise ValueError("nobody listens")

    engine = serving(tiny.model())
    engine.submit(GenerationRequest("deaf", (1, 2, 3), GREEDY), deaf)
    other = engine.ask(tiny.prompt_of(1, 8))
    with engine, caplog.at_level(logging.ERROR):
        assert len(other.wait().tokens()) == 24
        assert engine.error is None
    assert len(heard) == 2, "its first events, and its end"
    assert "nobody listens" in caplog.text
