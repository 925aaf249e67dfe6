"""Idle rows and slots that change hands: nothing that one sequence left reaches another, finite or not."""

from collections.abc import Callable

import pytest
import torch

from saegis_server.engine.api import SamplingParams, SteeringDivergedError
from saegis_server.engine.torch.step import SMALLEST, Extent, Step, StepOutput
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe, add
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.hooked import destructive
from tests.tiers import few

#: Their sliding windows are of twelve tokens, in every layer and in every other one.
WINDOWED = ("gemma2", "mistral")
GREEDY = SamplingParams(temperature=0.0)
SITE = Site.parse("layers.0.mlp_out")


def greedy(tokens: int) -> SamplingParams:
    """So many tokens, the likeliest ones."""
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def long_step(family: str) -> Step:
    """A step with room for the longest text that a tiny model takes."""
    return tiny.step(tiny.model(family), length=255)


def observed(step: Step) -> list[StepOutput]:
    """Every decode step's output, as they come."""
    outputs: list[StepOutput] = []
    decode = step.decode

    def watch(extent: Extent, live: int, sampled: bool) -> StepOutput:
        outputs.append(decode(extent, live, sampled))
        return outputs[-1]

    step.decode = watch  # type: ignore[method-assign]
    return outputs


def harmless() -> SteeringProgram:
    """An edit that moves the activations a little."""
    along = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(3))
    return SteeringProgram({SITE: SiteProgram(edits=(add(Probe.direction(along), 0.1),))})


@pytest.mark.parametrize("program", few([harmless(), UNSTEERED], 1), ids=few(["steered", "unsteered"], 1))
@pytest.mark.parametrize("family", few(WINDOWED, 1))
def test_who_follows_a_long_sequence_beside_a_longer_one_is_as_if_alone(
    family: str, program: SteeringProgram
) -> None:
    """The row of the one that left is idle for long, at a length that its window cannot see back from."""
    with tiny.RunningEngine(long_step(family)) as engine:
        wanted = engine.ask(tiny.prompt_of(3, 8), greedy(110), program).wait().tokens()
    step = long_step(family)
    outputs = observed(step)
    with tiny.RunningEngine(step) as engine:
        first = engine.ask(tiny.prompt_of(1, 8), greedy(230))
        second = engine.ask(tiny.prompt_of(2, 120), greedy(2)).wait()
        third = engine.ask(tiny.prompt_of(3, 8), greedy(110), program).wait()
        assert len(first.wait().tokens()) == 230
    assert len(second.tokens()) == 2
    assert third.tokens() == wanted
    assert all(bool(torch.isfinite(output.logits).all()) for output in outputs), "of idle rows too"


@pytest.mark.parametrize("diverging", few([(0, 3), (1, 2, 3), (2, 3), (0, 1)], 2))
def test_slots_of_several_that_diverge_at_once_serve_again(diverging: tuple[int, ...]) -> None:
    """The last running sequence moves into the first gap, and is itself one of those that diverged."""
    fresh = tiny.RunningEngine(tiny.step(tiny.model()))
    asked = [(tiny.prompt_of(20 + place, 31 - 9 * place), greedy(20)) for place in range(4)]
    wanted = [fresh.ask(*each) for each in asked]
    with fresh:
        tokens = [answer.wait().tokens() for answer in wanted]
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    first = [
        engine.ask(
            tiny.prompt_of(place, 12),
            greedy(12),
            destructive(Phase.COMPLETION) if place in diverging else UNSTEERED,
        )
        for place in range(4)
    ]
    with engine:
        for place, answer in enumerate(first):
            if place in diverging:
                assert isinstance(answer.wait().failed.error, SteeringDivergedError)
            else:
                assert len(answer.wait().tokens()) == 12
    later = tiny.RunningEngine(engine.step)
    got = [later.ask(*each) for each in asked]
    with later:
        assert [answer.wait().tokens() for answer in got] == tokens


def _rows(phase: Phase) -> SiteProgram:
    (rows,) = destructive(phase).sites.values()
    return rows


def diverge(step: Step, slot: int, length: int) -> None:
    """Read a prompt whose activations are beyond all bounds into a slot."""
    tokens = tiny.prompt_of(slot, length)
    steering = step.slots.room.admit({SITE: _rows(Phase.ALL)})
    step.slots.load(slot, tokens, GREEDY, 0, (), steering)
    output = step.prefill(slot, tokens, 0, Extent(SMALLEST, length), False)
    assert not bool(output.finite[0])


def released(step: Step) -> None:
    """A sequence ended, and gave its slot back."""
    diverge(step, 1, 100)
    step.slots.release(1)


def taken_over(step: Step) -> None:
    """Its slot goes to another without having been given back."""
    diverge(step, 1, 100)


def moved_away(step: Step) -> None:
    """A sequence that has diverged moves into a gap; what moved was as long as it was before."""
    diverge(step, 2, 100)
    step.slots.move(2, 1, 3)
    step.slots.release(2)


def moved_upon(step: Step) -> None:
    """A short sequence moves to where a long one has diverged, and leaves again."""
    diverge(step, 1, 100)
    step.slots.load(2, [1, 2, 3], GREEDY, 0, (), {})
    step.prefill(2, [1, 2, 3], 0, Extent(SMALLEST, 3), False)
    step.slots.move(2, 1, 3)


def cut_off(step: Step) -> None:
    """A prompt whose reading failed half way through the model."""

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    last = step.model.get_submodule("model.layers.2")
    handle = last.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            diverge(step, 1, 100)
    finally:
        handle.remove()
    step.slots.release(1)


def left_in_the_middle(step: Step) -> None:
    """A prompt that is given up between two chunks; while it waited, its row was idle, its edits in force."""
    tokens = tiny.prompt_of(1, 60)
    steering = step.slots.room.admit({SITE: _rows(Phase.COMPLETION)})
    step.slots.load(0, tokens, GREEDY, 0, (), {})
    step.prefill(0, tokens, 0, Extent(SMALLEST, 60), False)
    step.slots.load(1, tokens, GREEDY, 0, (), steering)
    step.prefill(1, tokens[:30], 0, Extent(SMALLEST, 30), False, answer=60)
    for length in (61, 62):
        assert bool(step.decode(Extent(SMALLEST, length), 1, False).finite[0])
    step.slots.release(1)


Ways = Callable[[Step], None]
WAYS: tuple[Ways, ...] = (released, taken_over, moved_away, moved_upon, cut_off, left_in_the_middle)


def logits_of(step: Step) -> torch.Tensor:
    """The logits of a short text in slot 1 beside a long one in slot 0, step by step."""
    long, short = tiny.prompt_of(8, 110), tiny.prompt_of(9, 5)
    for slot, tokens in ((0, long), (1, short)):
        step.slots.load(slot, tokens, GREEDY, 0, (), {})
        step.prefill(slot, tokens, 0, Extent(SMALLEST, len(tokens)), False)
    steps = [step.decode(Extent(SMALLEST, 111 + more), 2, False).logits.clone() for more in range(8)]
    return torch.stack(steps)


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_slot_inherits_no_bit_however_it_came_to_be_free(family: str, way: Ways) -> None:
    step = tiny.step(tiny.model(family))
    way(step)
    assert torch.equal(logits_of(step), logits_of(tiny.step(tiny.model(family))))
