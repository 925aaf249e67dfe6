"""Isolation to the last bit, seen in the logits of the embedded engine's steps."""

import pytest
import torch

from saegis_server.engine.api import (
    SamplingParams,
)
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe, add
from saegis_server.steering.site import Place, Site
from tests.engine import tiny
from tests.engine.hooked import destructive
from tests.tiers import few

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


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
    """How many there are, and how long, may change the order of sums, within the bound in docs/steering.md;
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
        program = SteeringProgram({Site(1, Place.RESID_POST): SiteProgram(edits=(edit,) if strength else ())})
        assert torch.equal(victims_logits(family, beside(60, 3, seed), program)[1], wanted)


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
