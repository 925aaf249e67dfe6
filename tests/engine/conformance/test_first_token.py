"""The first token: the model's own BOS is neither moved nor read unless somebody asks for it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saegis_server.engine.api import (
    FinishReason,
    FirstToken,
    Guard,
    Guarded,
    Limits,
    Reaction,
    RefusedByPolicyError,
    SamplingParams,
)
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal, Negation, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.serving import Serving

BOS, SITE, STRENGTH = 256, Site.parse("layers.1.resid_post"), 2.0
FIRST = FirstToken(BOS)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
VECTOR = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
ADDED = SteeringProgram({SITE: SiteProgram(edits=(rows.add(rows.Probe.direction(VECTOR), STRENGTH),))})


def hooked(prompt: list[int], unmoved: int, tokens: int = 8) -> list[int]:
    """The greedy answer of the model's own code, the vector added by a plain hook but at the first tokens."""
    model, text = tiny.model(), list(prompt)

    def add(_: object, __: object, output: tuple[Tensor, ...] | Tensor) -> tuple[Tensor, ...] | Tensor:
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[:, unmoved:] += STRENGTH * VECTOR / VECTOR.norm()
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.get_submodule("model.layers.1").register_forward_hook(add)
    with torch.no_grad():
        for _ in range(tokens):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    handle.remove()
    return text[len(prompt) :]


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_rows_move_the_first_token_only_if_asked(serving: Serving, chunk: int) -> None:
    prompt = [BOS, *tiny.prompt_of(2, 9), BOS, *tiny.prompt_of(3, 2)]
    wanted = {unmoved: hooked(prompt, unmoved) for unmoved in (0, 1)}
    assert wanted[0] != wanted[1], "choose another prompt"
    asked, limits = replace(ADDED, moves_first_token=True), Limits(prefill_chunk=chunk)
    assert asked.digest != ADDED.digest
    with serving(tiny.model(), limits=limits, first_token=FIRST) as engine:
        for program, unmoved, text in ((ADDED, 1, prompt), (asked, 0, prompt), (ADDED, 0, prompt[1:])):
            answer = engine.ask(text, GREEDY, program).wait()
            assert answer.tokens() == (wanted[unmoved] if text is prompt else hooked(text, 0))
            receipt, usage = answer.finished.receipt, answer.finished.usage
            assert receipt.first_token_steered is (unmoved == 0)
            assert usage.steered_tokens == receipt.sites[0].tokens_edited == len(text) + 7 - unmoved
            score = engine.score([*text, *answer.tokens()], program).result(30)
            assert score.receipt.first_token_steered is (unmoved == 0)
            assert score.receipt.sites[0].tokens_edited == len(text) + 8 - unmoved
            # The answer is the likeliest one under the very steering that it was written under.
            assert sum(score.logprobs[-8:]) > sum(score.plain_logprobs[-8:])
        assert not engine.ask(prompt, GREEDY).wait().finished.receipt.first_token_steered
    everybody = FirstToken(BOS, moved=True)
    with serving(tiny.model(), first_token=everybody) as engine:
        assert engine.ask(prompt, GREEDY, ADDED).wait().tokens() == wanted[0]


def bos_probe() -> tuple[rows.Probe, float]:
    """A direction that the first token has more of than any other, and a threshold between."""
    prompt = [BOS, *tiny.prompt_of(3, 12)]
    x = tiny.step(tiny.model()).capture(prompt)[SITE]
    direction = torch.linalg.lstsq(x, torch.eye(len(prompt))[0]).solution
    found = rows.Probe.direction(direction)
    values = x @ found.read
    assert float(values[0]) > 2 * float(values[1:].max())
    return found, float(values[0]) / 2


@pytest.mark.parametrize("chunk", [1, 64])
def test_conditions_read_the_first_token_only_if_asked(serving: Serving, chunk: int) -> None:
    found, level = bos_probe()
    prompt = [BOS, *tiny.prompt_of(3, 12)]
    program = SteeringProgram({SITE: SiteProgram(guards=(found,))})
    stop = Guard((Guarded("p/stop", Condition(Literal(0, level)), Reaction.STOP),))
    one = replace(GREEDY, max_tokens=1)
    asked, limits = replace(stop, reads_first_token=True), Limits(prefill_chunk=chunk)
    with serving(tiny.model(), limits=limits, first_token=FIRST) as engine:
        quiet = engine.ask(prompt, one, program, guard=stop).wait()
        assert (len(quiet.tokens()), quiet.ending().reason) == (1, FinishReason.LENGTH)
        receipt = quiet.finished.receipt
        assert not receipt.first_token_read
        assert receipt.guard_peaks[0] < level
        assert not engine.score(prompt, program, stop).result(30).receipt.first_token_read
        loud = engine.ask(prompt, one, program, guard=asked).wait()
        assert (loud.tokens(), loud.ending().reason) == ([], FinishReason.CONTENT_FILTER)
        assert loud.finished.receipt.first_token_read
        assert loud.finished.receipt.guard_peaks[0] > level
        with pytest.raises(RefusedByPolicyError):
            engine.score(prompt, program, asked).result(30)
    everybody = FirstToken(BOS, read=True)
    with serving(tiny.model(), first_token=everybody) as engine:
        assert engine.ask(prompt, one, program, guard=stop).wait().tokens() == []


def test_of_a_prompt_that_is_the_first_token_alone_nothing_holds(serving: Serving) -> None:
    """Not even what holds where a reading is not above a threshold: nothing has been read."""
    found, _ = bos_probe()
    program = SteeringProgram({SITE: SiteProgram(guards=(found,))})
    never = Condition(Negation(Literal(0, 1e6)), Scope.PROMPT)
    guard = Guard((Guarded("p/no", never, Reaction.REFUSE), Guarded("p/note", never, Reaction.RECORD)))
    with serving(tiny.model(), first_token=FIRST) as engine:
        answer = engine.ask([BOS], GREEDY, program, guard=guard).wait()
        assert len(answer.tokens()) == 8
        receipt = answer.finished.receipt
        assert [each.held_tokens for each in receipt.conditions] == [0, 0]
        assert len(receipt.guard_peaks) == 1
        # A prompt without it is read from its first token.
        assert isinstance(
            engine.ask([7], GREEDY, program, guard=guard).wait().failed.error, RefusedByPolicyError
        )
