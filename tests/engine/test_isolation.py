"""Isolation: what one request says and does to itself never reaches the others, by a token or by a bit."""

import logging

import pytest
import torch

from saegis_server.engine.requests import (
    Event,
    GenerationRequest,
    NonFiniteLogitsError,
    SamplingParams,
    SteeringDivergedError,
    TokenOutput,
)
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe, add
from tests.engine import tiny
from tests.tiers import few

TOLD = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def destructive(phase: Phase) -> SteeringProgram:
    """Adds so much that the squares in the norms overflow, and then their products."""
    huge = torch.full((tiny.WIDTH,), 3e38)
    edit = add(Probe("endless", huge, huge, linear=True), 1e6, phase=phase)
    return SteeringProgram({"layers.1.resid_post": SiteProgram(edits=(edit,))})


def run_four(
    program: SteeringProgram | None, place: int
) -> tuple[dict[int, list[TokenOutput]], tiny.Answer, tiny.RunningEngine]:
    """Four requests in one batch, the one at `place` steered; the outputs of the others."""
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
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
def test_a_request_that_diverges_fails_alone_and_its_slot_serves_again(place: int, phase: Phase) -> None:
    wanted, untouched, _ = run_four(None, place)
    assert len(untouched.tokens()) == 12
    got, failed, _ = run_four(destructive(phase), place)
    assert isinstance(failed.failed.error, SteeringDivergedError)
    assert len(failed.tokens()) == (0 if phase is Phase.ALL else 1)
    for seed, outputs in wanted.items():
        # The batch is smaller once the request is out, which may change the last bits of a product.
        tokens = [one.token_id for one in outputs]
        assert [one.token_id for one in got[seed]] == tokens
        mine = torch.tensor([one.logprob for one in got[seed]])
        assert torch.allclose(mine, torch.tensor([one.logprob for one in outputs]), atol=1e-5)


def test_neighbours_keep_their_bits_in_the_very_step_that_diverges() -> None:
    """At one shape: of two steps on the same slots, one with a row that is not finite."""
    logits = []
    for program in (None, destructive(Phase.COMPLETION)):
        engine = tiny.RunningEngine(tiny.step(tiny.model()))
        for seed in range(4):
            steering = program if seed == 1 and program is not None else UNSTEERED
            engine.ask(tiny.prompt_of(seed, 12), GREEDY, steering)
        seen: list[torch.Tensor] = []
        decode = engine.step.decode

        def watch(*arguments: object, seen: list[torch.Tensor] = seen, decode: object = decode) -> object:
            output = decode(*arguments)  # type: ignore[operator]
            seen.append(output.logits.clone())
            return output

        engine.step.decode = watch  # type: ignore[method-assign, assignment]
        with engine:
            engine.ask(tiny.prompt_of(5, 3)).wait()
        logits.append(seen[0])
    plain, diverged = logits
    assert not torch.isfinite(diverged[1]).all()
    for row in (0, 2, 3):
        assert torch.equal(plain[row], diverged[row])


def victims_logits(
    family: str, neighbours: list[list[int]], program: SteeringProgram = UNSTEERED
) -> tuple[list[int], torch.Tensor]:
    """The tokens of a request in the first slot, and its logits in every decode step, beside others."""
    step = tiny.step(tiny.model(family))
    engine, decode, seen = tiny.RunningEngine(step), step.decode, []

    def watch(*arguments: object) -> object:
        output = decode(*arguments)  # type: ignore[arg-type]
        seen.append(output.logits[0].clone())
        return output

    step.decode = watch  # type: ignore[method-assign, assignment]
    victim = engine.ask(tiny.prompt_of(1, 19), GREEDY)
    for neighbour in neighbours:
        engine.ask(neighbour, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True), program)
    with engine:
        tokens = victim.wait().tokens()
    return tokens, torch.stack(seen[: len(tokens) - 1])


@pytest.mark.parametrize("family", few(["llama", "gemma2", "gpt2"], 1))
def test_a_neighbour_shows_by_its_shape_alone_and_in_the_last_bits(family: str) -> None:
    """How many there are, and how long, may change the order of sums, within the bound in the README;
    what they say and how they are steered changes not a bit."""

    def beside(length: int, count: int, seed: int) -> list[list[int]]:
        return [tiny.prompt_of(seed + place, length) for place in range(count)]

    tokens, alone = victims_logits(family, [])
    bound = 2.0**-16 * float(alone.std(-1).min())
    for length, count in ((3, 1), (120, 1), (3, 3), (120, 3), (60, 7)):
        written, logits = victims_logits(family, beside(length, count, 50))
        assert written == tokens
        assert float((logits - alone).abs().max()) <= bound
    wanted = victims_logits(family, beside(60, 3, 50))[1]
    for seed, strength in ((70, 0.0), (90, 5.0), (90, -300.0)):
        along = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
        edit = add(Probe.direction(along), strength)
        program = SteeringProgram({"layers.1.resid_post": SiteProgram(edits=(edit,) if strength else ())})
        assert torch.equal(victims_logits(family, beside(60, 3, seed), program)[1], wanted)


def test_a_sibling_of_a_diverged_sequence_ends_with_its_request() -> None:
    sampling = SamplingParams(n=3, seed=1, max_tokens=8, ignore_eos=True)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        failed = engine.ask(tiny.prompt_of(0, 6), sampling, destructive(Phase.COMPLETION)).wait()
        assert isinstance(failed.failed.error, SteeringDivergedError)
        assert len(engine.ask(tiny.prompt_of(1, 6), sampling).wait().tokens(2)) == 8


def test_an_unsteered_request_whose_logits_are_not_finite_blames_the_model() -> None:
    broken = tiny.model()
    with torch.no_grad():
        broken.get_parameter("lm_head.weight")[3] = torch.inf
    with tiny.RunningEngine(tiny.step(broken)) as engine:
        assert isinstance(engine.ask([1, 2]).wait().failed.error, NonFiniteLogitsError)


def test_a_logit_bias_does_not_outlive_its_request() -> None:
    """A plain greedy row that takes over the slot goes through the sampler if a neighbour samples."""
    forcing = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, logit_bias={7: 100.0})
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        wanted = engine.ask(tiny.prompt_of(1, 8), GREEDY).wait().tokens()
        assert engine.ask(tiny.prompt_of(0, 8), forcing).wait().tokens() == [7, 7]
    later = tiny.RunningEngine(engine.step)
    answer = later.ask(tiny.prompt_of(1, 8), GREEDY)
    later.ask(tiny.prompt_of(2, 8), SamplingParams(seed=3, max_tokens=12, ignore_eos=True))
    with later:
        assert answer.wait().tokens() == wanted


def test_a_sink_that_raises_loses_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    heard = []

    def deaf(events: list[Event]) -> None:
        heard.append(events)
        raise ValueError("nobody listens")

    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    engine.submit(GenerationRequest("deaf", (1, 2, 3), GREEDY), deaf)
    other = engine.ask(tiny.prompt_of(1, 8))
    with engine, caplog.at_level(logging.ERROR):
        assert len(other.wait().tokens()) == 24
        assert engine.error is None
    assert len(heard) == 2, "its first events, and its end"
    assert "nobody listens" in caplog.text
