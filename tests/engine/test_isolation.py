"""Isolation to the last bit, seen in the logits of the embedded engine's steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from saegis_server.engine.api import (
    SamplingParams,
)
from saegis_server.engine.torch.rope import freeze_rope
from saegis_server.engine.torch.step import Extent, StepOutput
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


class Victim(NamedTuple):
    """A request in the first slot: its tokens, its logits [N, V] and the extent of each of its decode steps,
    and the logits of its prompt's chunks."""

    tokens: list[int]
    logits: torch.Tensor
    extents: list[Extent]
    read: torch.Tensor


def victim_of(
    on: PreTrainedModel,
    length: int,
    neighbours: list[list[int]],
    program: SteeringProgram = UNSTEERED,
    extents: Sequence[Extent] = (),
) -> Victim:
    """A request with a prompt of `length` tokens, beside others; with the decode steps' extents, if given."""
    step = tiny.step(on)
    engine, decode, prefill = tiny.RunningEngine(step), step.decode, step.prefill
    seen: list[torch.Tensor] = []
    taken: list[Extent] = []
    read: list[torch.Tensor] = []

    def watch(extent: Extent, live: int, sampled: bool) -> StepOutput:
        taken.append(extents[len(taken)] if len(taken) < len(extents) else extent)
        output = decode(taken[-1], live, sampled)
        seen.append(output.logits[0].clone())
        return output

    def watch_reading(slot: int, *arguments: Any) -> StepOutput:
        output = prefill(slot, *arguments)
        read.extend([output.logits[0].clone()] * (slot == 0))
        return output

    step.decode, step.prefill = watch, watch_reading  # type: ignore[method-assign, assignment]
    victim = engine.ask(tiny.prompt_of(1, length), GREEDY)
    for neighbour in neighbours:
        engine.ask(neighbour, SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True), program)
    with engine:
        tokens = victim.wait().tokens()
    steps = len(tokens) - 1
    return Victim(tokens, torch.stack(seen[:steps]), taken[:steps], torch.stack(read))


def victims_logits(
    family: str, neighbours: list[list[int]], program: SteeringProgram = UNSTEERED
) -> tuple[list[int], torch.Tensor]:
    """The tokens of a request in the first slot, and its logits in every decode step, beside others."""
    victim = victim_of(tiny.model(family), 19, neighbours, program)
    return victim.tokens, victim.logits


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


ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.2, 1.4, 1.6, 1.8, 2.0],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        "factor": 5.0,
        "original_max_position_embeddings": 50,
        "rope_theta": 1e4,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "default": {"rope_type": "default", "rope_theta": 1e4},
}


@pytest.mark.parametrize("rope", few(list(ROPES), 1))
def test_a_longer_text_beside_changes_the_order_of_sums_alone(rope: str) -> None:
    """A short request, alone and beside texts that are past RoPE's original length: the same tokens, and bit
    for bit the same logits where as many rows are computed over as much of the cache. Those of its prompt
    are the same in any case."""

    def victim(neighbours: list[list[int]], extents: Sequence[Extent] = ()) -> Victim:
        model = tiny.model(max_position_embeddings=128, rope_parameters=ROPES[rope])
        assert (freeze_rope(model, 160) is None) is (rope == "default")
        return victim_of(model, 9, neighbours, extents=extents)

    alone = victim([])
    bound = 2.0**-16 * float(alone.logits.std(-1).min())
    for count in (1, 3):
        beside = victim([tiny.prompt_of(50 + place, 130) for place in range(count)])
        assert beside.extents != alone.extents
        assert beside.tokens == alone.tokens
        assert torch.equal(beside.read, alone.read)
        assert float((beside.logits - alone.logits).abs().max()) <= bound
        assert torch.equal(victim([], beside.extents).logits, beside.logits)


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
