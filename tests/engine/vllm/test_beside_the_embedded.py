"""The engine on vLLM beside the embedded one: readings, scores, captures, conditions and what is observed."""

from collections.abc import Iterator

import pytest
import torch

from saegis_server.engine.api import (
    DeadlineExceededError,
    Event,
    FinishReason,
    GenerationRequest,
    Guard,
    Guarded,
    Limits,
    Reaction,
    RefusedByPolicyError,
    SamplingParams,
    SteeringDivergedError,
)
from saegis_server.engine.counts import Observed
from saegis_server.engine.readouts import PromptRead, Readouts
from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase
from tests.engine import tiny
from tests.engine.guarded import READ_ONLY, SITES, always, flickering, late, probe, watched_program
from tests.engine.hooked import destructive, random_program
from tests.engine.in_vllm import HAS_VLLM, in_vllm
from tests.engine.on_plain_core import on_plain_core
from tests.engine.serving import Answer, Asked

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
TOLD = SamplingParams(seed=1, max_tokens=10, ignore_eos=True, logprobs=3)
PROMPT = tiny.prompt_of(4, 21)
REFUSING = Guard((always("p/no", Reaction.REFUSE, message="not here"),))
make = in_vllm if HAS_VLLM else on_plain_core


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Asked, Asked]]:
    """The engine on vLLM, and the embedded one."""
    chunked = Limits(prefill_chunk=5)
    embedded = tiny.RunningEngine(tiny.step(tiny.model()), limits=chunked)
    with make(tiny.model(), limits=chunked) as engine, embedded:
        yield engine, embedded


def test_a_score_and_what_was_done_in_it(both: tuple[Asked, Asked]) -> None:
    edit = {SITES[1]: SiteProgram(rules=(rows.add(probe(5), 4.0),))}
    cases = (
        (random_program(3, 6), Guard()),
        (READ_ONLY, Guard((always("p/edit", Reaction.EDIT, rows=edit),))),
    )
    for program, guard in cases:
        mine, theirs = (each.score(PROMPT, program, guard, prefilled=4).result(120) for each in both)
        for one, other in ((mine.logprobs, theirs.logprobs), (mine.divergences, theirs.divergences)):
            assert one == pytest.approx(other, abs=1e-4)
        assert mine.receipt.steered
        assert [site.tokens_edited for site in mine.receipt.sites] == [
            site.tokens_edited for site in theirs.receipt.sites
        ]
        assert mine.receipt.conditions == theirs.receipt.conditions
    for each in both:
        refused = each.score(PROMPT, READ_ONLY, REFUSING)
        with pytest.raises(RefusedByPolicyError, match="not here"):
            refused.result(120)
        with pytest.raises(SteeringDivergedError):
            each.score(PROMPT, destructive(Phase.ALL)).result(120)


def test_a_capture(both: tuple[Asked, Asked]) -> None:
    mine, theirs = (each.capture(PROMPT).result(120) for each in both)
    assert mine.keys() == theirs.keys()
    for site, x in mine.items():
        torch.testing.assert_close(x, theirs[site], atol=1e-4, rtol=1e-4)


def test_what_is_told_of_single_tokens(both: tuple[Asked, Asked]) -> None:
    told = Readouts(prompt=True, moves=True)
    for program in (watched_program(3, 2), SteeringProgram()):
        mine, theirs = (each.ask(PROMPT, GREEDY, program, readouts=told).wait() for each in both)
        assert mine.tokens() == theirs.tokens()
        for one, other in zip(mine.outputs(), theirs.outputs(), strict=True):
            assert one.moves == pytest.approx(other.moves, abs=1e-4)
            for own, others in zip(one.watched, other.watched, strict=True):
                assert (own.before, own.after) == pytest.approx((others.before, others.after), abs=1e-3)
        read = [
            event for answer in (mine, theirs) for event in answer.events if isinstance(event, PromptRead)
        ]
        assert len(read) == 2
        for one_move, other_move in zip(read[0].moves, read[1].moves, strict=True):
            assert one_move == pytest.approx(other_move, abs=1e-4)
        assert [len(watch.before) for watch in read[0].watched] == [
            len(each.before) for each in read[1].watched
        ]


def test_conditions_stop_refuse_and_edit(both: tuple[Asked, Asked]) -> None:
    prompt, _, condition, token = late()
    stop = Guard((Guarded("p/stop", condition, Reaction.STOP),))
    long = SamplingParams(temperature=0.0, max_tokens=20 + token, ignore_eos=True)
    stopped = [each.ask(prompt, long, READ_ONLY, guard=stop).wait() for each in both]
    assert [answer.ending().reason for answer in stopped] == 2 * [FinishReason.CONTENT_FILTER]
    program, guard = flickering()
    edited = [each.ask(PROMPT, GREEDY, program, guard=guard).wait() for each in both]
    for mine, theirs in (stopped, edited):
        assert mine.tokens() == theirs.tokens()
        assert mine.finished.receipt.conditions == theirs.finished.receipt.conditions
    for each in both:
        assert isinstance(
            each.ask(PROMPT, GREEDY, READ_ONLY, guard=REFUSING).wait().failed.error, RefusedByPolicyError
        )


def test_neighbours_of_a_prompt_that_is_read_again_keep_their_tokens(both: tuple[Asked, Asked]) -> None:
    found = []
    for guarding in (False, True):
        program, guard = flickering() if guarding else (SteeringProgram(), Guard())
        plain = [both[0].ask(tiny.prompt_of(seed, 10 + seed), TOLD) for seed in range(3)]
        edited = [both[0].ask(tiny.prompt_of(seed, 10 + seed), TOLD, program, guard=guard) for seed in (7, 8)]
        found.append([answer.wait().outputs() for answer in plain])
        assert all(answer.wait().finished for answer in edited)
    for one, other in zip(*found, strict=True):
        assert [each.token_id for each in one] == [each.token_id for each in other]
        assert [each.logprob for each in one] == pytest.approx([each.logprob for each in other], abs=1e-4)


def test_what_is_observed(both: tuple[Asked, Asked]) -> None:
    features = [Observed(SITES[0], probe(3, "relu"), 2.0), Observed(SITES[2], probe(4), None)]
    sampling = SamplingParams(n=2, seed=3, max_tokens=5, ignore_eos=True)
    found = []
    for each in both:
        each.engine.observe(features)
        firing = each.ask(PROMPT, sampling).wait().finished.firing
        found.append({key: [(one.tokens, one.above) for one in phases] for key, phases in firing.items()})
        each.engine.observe([])
    assert found[0] == found[1]
    assert any(one[0] for phases in found[0].values() for one in phases)
    with pytest.raises(ValueError, match="room for 256"):
        both[0].engine.observe(300 * features[:1])


def test_endings_that_are_nobodys_wish(both: tuple[Asked, Asked]) -> None:
    engine = both[0]
    assert isinstance(engine.ask(PROMPT, GREEDY, deadline=0.0).wait().failed.error, DeadlineExceededError)
    diverged = engine.ask(PROMPT, GREEDY, destructive(Phase.COMPLETION)).wait()
    assert isinstance(diverged.failed.error, SteeringDivergedError)

    class Failing(Answer):
        def __call__(self, events: list[Event]) -> None:
            raise RuntimeError("a sink that fails")

    engine.submit(GenerationRequest("fails", tuple(PROMPT), GREEDY), Failing())
    assert engine.ask(PROMPT, GREEDY).wait().finished
    assert engine.engine.stats().running <= 1
