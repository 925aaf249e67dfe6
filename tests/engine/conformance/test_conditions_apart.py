"""Conditions apart: what they do to one request reaches no other, and nothing of them is left behind."""

from dataclasses import replace

import pytest
import torch

from saegis_server.engine.api import (
    Event,
    FinishReason,
    GenerationRequest,
    Guard,
    Guarded,
    NonFiniteLogitsError,
    Reaction,
    RefusedByPolicyError,
    SamplingParams,
    SteeringDivergedError,
)
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase, Probe
from tests.engine import guarded, tiny
from tests.engine.guarded import (
    READ_ONLY,
    SITES,
    always,
    flickering,
    probe,
)
from tests.engine.hooked import destructive, random_program
from tests.engine.in_vllm import HAS_VLLM
from tests.engine.naive import Naive
from tests.engine.serving import Answer, Serving, require_same

TOLD = SamplingParams(seed=1, max_tokens=14, ignore_eos=True, logprobs=3)
LONG = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
ADDED = {SITES[1]: SiteProgram(rules=(rows.add(probe(5), 4.0),))}


def test_neighbours_keep_their_bits(serving: Serving) -> None:
    """vLLM puts its steps together as it likes, so that there tokens are the same and bits need not be."""
    wanted = None
    for guarding in (False, True):
        engine = serving(tiny.model())
        answers = []
        for seed in range(6):
            program, guard = (
                flickering() if guarding and seed % 2 else (random_program(seed, 3 * seed), Guard())
            )
            sampling = replace(TOLD, seed=seed, temperature=float(seed % 3))
            answers.append(engine.ask(tiny.prompt_of(seed, 10 + seed), sampling, program, guard=guard))
        with engine:
            outputs = [answer.wait().outputs() for answer in answers]
        if guarding:
            counts = [answers[seed].finished.receipt.conditions for seed in (1, 3, 5)]
            assert all(0 < edit.held_tokens < 14 == count.held_tokens for edit, count in counts)
        wanted = wanted or outputs
        for seed in (0, 2, 4):
            require_same(outputs[seed], wanted[seed], bits=not HAS_VLLM)


def test_requests_one_after_the_other_in_a_slot_are_each_as_on_a_fresh_engine(serving: Serving) -> None:
    """With the same prompt and different programs: neither keys and values nor rows go over to the next."""
    prompt = tiny.prompt_of(3, 23)
    guarded_program, guard = flickering()
    asked = [(random_program(seed, 7), Guard()) for seed in (1, 2, 3)]
    asked[1:1] = [(guarded_program, guard), (SteeringProgram(), Guard())]
    fresh = []
    for program, conditions in asked:
        with serving(tiny.model(), max_running=1) as engine:
            fresh.append(engine.ask(prompt, TOLD, program, guard=conditions).wait())
    with serving(tiny.model(), max_running=1) as engine:
        for (program, conditions), wanted in zip(asked * 2, fresh * 2, strict=True):
            answer = engine.ask(prompt, TOLD, program, guard=conditions).wait()
            assert answer.outputs() == wanted.outputs()
            assert answer.finished.receipt == wanted.finished.receipt
            assert answer.finished.usage.cached_tokens == 0
    assert len({str(answer.outputs()) for answer in fresh}) == len(fresh)


@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_rows_that_destroy_fail_their_own_request(serving: Serving, where: str) -> None:
    phase = Phase.ALL if where == "prompt" else Phase.COMPLETION
    huge = {name: SiteProgram(rules=site.edits) for name, site in destructive(phase).sites.items()}
    guard = Guard((always("p/edit", Reaction.EDIT, rows=huge),))
    with serving(tiny.model()) as engine:
        wanted = engine.ask(tiny.prompt_of(1, 8), LONG).wait().tokens()
        beside = engine.ask(tiny.prompt_of(1, 8), LONG)
        failed = engine.ask(tiny.prompt_of(2, 8), LONG, READ_ONLY, guard=guard).wait()
        assert isinstance(failed.failed.error, SteeringDivergedError)
        assert len(failed.tokens()) == (0 if where == "prompt" else 1)
        assert beside.wait().tokens() == wanted
        assert engine.ask(tiny.prompt_of(1, 8), LONG).wait().tokens() == wanted


def unreadable() -> SteeringProgram:
    """A guard whose sums overflow in both directions."""
    signs = torch.where(torch.arange(tiny.WIDTH) % 2 == 0, 3e38, -3e38)
    overflowing = Probe("endless", signs, signs, linear=True)
    return SteeringProgram({SITES[0]: SiteProgram(guards=(probe(77), overflowing))})


def test_what_cannot_be_judged_does_not_go_on(serving: Serving) -> None:
    """Whatever the conditions look at: a guard that is only recorded must be a number too."""
    guard = Guard((Guarded("p/stop", Condition(Literal(1, 1e6)), Reaction.STOP),))
    with serving(tiny.model()) as engine:
        for conditions in (guard, Guard()):
            failed = engine.ask(tiny.prompt_of(2, 8), LONG, unreadable(), guard=conditions).wait()
            assert isinstance(failed.failed.error, NonFiniteLogitsError)
            assert "reading is no finite number" in str(failed.failed.error)
            assert failed.tokens() == []
        with pytest.raises(NonFiniteLogitsError, match="reading is no finite number"):
            engine.score(tiny.prompt_of(2, 8), unreadable(), guard).result(30)


def test_a_cancelled_request_leaves_no_rows_behind(serving: Serving) -> None:
    program, guard = flickering()
    with serving(tiny.model(), max_running=2) as engine:

        class CancelAfterFive(Answer):
            def __call__(self, events: list[Event]) -> None:
                super().__call__(events)
                if len(self.tokens()) == 5:
                    engine.cancel("gone")

        wanted = engine.ask(tiny.prompt_of(1, 8), TOLD, READ_ONLY).wait().outputs()
        for prompt in (5, 6):
            beside = engine.ask(tiny.prompt_of(4, 8), LONG, program, guard=guard)
            answer = CancelAfterFive()
            asked = tuple(tiny.prompt_of(prompt, 8))
            engine.submit(GenerationRequest("gone", asked, LONG, program, guard=guard), answer)
            assert answer.wait().ending().reason is FinishReason.ABORT
            receipt = answer.finished.receipt
            assert receipt.conditions[1].held_tokens == len(answer.tokens())
            assert len(beside.wait().tokens()) == 30
        assert engine.ask(tiny.prompt_of(1, 8), TOLD, READ_ONLY).wait().outputs() == wanted


def test_more_guards_at_once_than_a_panel_begins_with_and_different_ones(serving: Serving) -> None:
    with serving(tiny.model(), max_running=16) as engine:
        answers = []
        for index in range(24):
            count = Guarded(f"p/{index % 3}", Condition(Literal(0, -1e6 + index % 3)), Reaction.RECORD)
            sampling = replace(TOLD, max_tokens=1 + index)
            asked = engine.ask(tiny.prompt_of(index, 9), sampling, READ_ONLY, guard=Guard((count,)))
            answers.append(asked)
        for index, answer in enumerate(answers):
            (found,) = answer.wait().finished.receipt.conditions
            assert (found.name, found.held_tokens, found.first_token) == (f"p/{index % 3}", 1 + index, -1)


@pytest.mark.parametrize("reaction", [Reaction.REFUSE, Reaction.STOP])
def test_a_score_is_refused_by_what_would_refuse_or_stop(serving: Serving, reaction: Reaction) -> None:
    text = tiny.prompt_of(3, 40)
    with serving(tiny.model()) as engine:
        guard = Guard((always("p/no", reaction, message="not this"),))
        with pytest.raises(RefusedByPolicyError, match="not this") as error:
            engine.score(text, READ_ONLY, guard).result(30)
        assert error.value.name == "p/no"
        never = Guard((Guarded("p/no", Condition(Literal(0, 1e6)), reaction),))
        free = engine.score(text, READ_ONLY, never).result(30)
        assert free.logprobs == engine.score(text).result(30).logprobs
        assert free.receipt.conditions[0].first_token is None


def test_a_score_is_refused_by_what_holds_at_one_early_token(serving: Serving) -> None:
    text = tiny.prompt_of(5, 40)
    values = Naive(tiny.model(), text, READ_ONLY, Guard(), replace(LONG, max_tokens=1)).run().values[:40]
    first = sorted(range(40), key=lambda token: -values[token][0])[:2]
    assert first[0] < 16, "not in the first chunk"
    level = (values[first[0]][0] + values[first[1]][0]) / 2.0
    guard = Guard((Guarded("p/no", Condition(Literal(0, level)), Reaction.REFUSE, message="not this"),))
    with serving(tiny.model()) as engine:
        assert isinstance(
            engine.ask(text, LONG, READ_ONLY, guard=guard).wait().failed.error, RefusedByPolicyError
        )
        with pytest.raises(RefusedByPolicyError, match="not this"):
            engine.score(text, READ_ONLY, guard).result(30)


def test_a_scored_text_is_read_again_with_the_rows_of_its_conditions(serving: Serving) -> None:
    """Both the condition that holds at first, and the one that its rows make hold."""
    text, pushed = tiny.prompt_of(3, 40), Probe.direction(probe(77).read)
    program = SteeringProgram({SITES[1]: SiteProgram(guards=(pushed,))})
    first, then = (SiteProgram(rules=(row,)) for row in (rows.add(pushed, 50.0), rows.add(probe(5), 4.0)))
    levels = [Condition(Literal(0, level), Scope.PROMPT) for level in (-1e6, 25.0, 1e5)]
    guard = Guard(
        tuple(
            Guarded(f"p/{place}", level, Reaction.EDIT, rows={SITES[0]: added})
            for place, (level, added) in enumerate(zip(levels, (first, then, then), strict=True))
        )
    )
    with serving(tiny.model()) as engine:
        found = engine.score(text, program, guard).result(30)
        once, both = (
            engine.score(text, SteeringProgram({SITES[0]: SiteProgram(rules=rules)})).result(30)
            for rules in (first.rules, first.rules + then.rules)
        )
        assert found.logprobs == both.logprobs != once.logprobs
    assert [(each.held_tokens, each.first_token) for each in found.receipt.conditions] == [
        (1, -1),
        (1, -1),
        (0, None),
    ]
    assert [(site.site, site.rules, site.tokens_edited) for site in found.receipt.sites] == [
        (SITES[1], 0, 0),
        (SITES[0], 2, 40),
    ]
    assert found.receipt.guard_peaks[0] > 25.0


def test_random_cases_are_the_same_in_every_company(serving: Serving) -> None:
    """A guarded request alone, and twice beside its like, is told the same to the last bit."""
    case = guarded.random_case(16)
    with serving(tiny.model()) as engine:
        alone = engine.ask(case.prompt, case.sampling, case.program, guard=case.guard).wait()
        pair = [engine.ask(case.prompt, case.sampling, case.program, guard=case.guard) for _ in range(2)]
        for answer in pair:
            assert answer.wait().tokens() == alone.tokens()
            assert answer.finished.receipt.conditions == alone.finished.receipt.conditions
