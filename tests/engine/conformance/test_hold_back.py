"""What is told only once it has been judged, and what a request gives of its answer, against the loop."""

from dataclasses import replace
from functools import cache

import pytest

from saegis_server.engine.api import (
    Delta,
    FieldError,
    FinishReason,
    GenerationRequest,
    Guard,
    Guarded,
    Limits,
    Reaction,
    RefusedByPolicyError,
    SamplingParams,
)
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Phase
from tests.engine import guarded, tiny
from tests.engine.guarded import (
    READ_ONLY,
    SITES,
    Case,
    agrees,
    late,
    probe,
)
from tests.engine.naive import Naive
from tests.engine.serving import Serving

#: Those in which something happens early or in what is given; see `test_the_cases_cover_what_can_happen`.
SEEDS = (5, 11, 12, 27, 33, 117)
LONG = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


@cache
def answered(seed: int) -> tuple[Case, Naive]:
    """A random case whose prompt's last tokens are the answer's, and what the loop makes of it."""
    case = guarded.random_case(seed)
    given = len(case.prompt) // 3 + (seed % 2 and len(case.prompt) > 3)
    prompt, own = case.prompt[: len(case.prompt) - given], case.prompt[len(case.prompt) - given :]
    conditions = list(case.guard.conditions)
    if seed % 2:
        conditions[-1] = replace(conditions[-1], reaction=Reaction.STOP, rows={})
    held = any(each.reaction is Reaction.STOP for each in conditions)
    case = replace(case, guard=Guard(tuple(conditions), hold_back=1 + seed % 3))
    naive = Naive(tiny.model(), prompt, case.program, case.guard, case.sampling, given=own)
    naive.hold_back = case.guard.hold_back if held else 0
    return case, naive.run()


def test_the_cases_cover_what_can_happen() -> None:
    cases = [answered(seed) for seed in SEEDS]
    assert {wanted.ended for _, wanted in cases} == {"length", "stopped"}
    ends = [(len(wanted.given), len(wanted.tokens)) for _, wanted in cases if wanted.ended == "stopped"]
    assert any(tokens <= given for given, tokens in ends), "a stop in what is given"
    assert any(tokens > given + 1 for given, tokens in ends), "a stop in what is written"
    assert any(tokens == given + 1 for given, tokens in ends), "a stop at the first token that is written"


def test_it_is_what_the_loop_says(serving: Serving) -> None:
    """All at once in few slots, whose prompts are read in chunks."""
    engine = serving(tiny.model(), max_running=4, limits=Limits(prefill_chunk=5))
    answers = []
    for seed in SEEDS:
        case, wanted = answered(seed)
        given = len(wanted.given)
        answers.append(
            engine.ask(case.prompt, case.sampling, case.program, guard=case.guard, prefilled=given)
        )
    with engine:
        for seed, answer in zip(SEEDS, answers, strict=True):
            agrees(answer.wait(), *answered(seed))


def stops(hold_back: int = 1, reaction: Reaction = Reaction.STOP) -> Guard:
    return Guard((Guarded("p/stop", late()[2], reaction),), hold_back=hold_back)


@pytest.mark.parametrize("hold_back", [1, 3, 100])
def test_the_token_that_stops_an_answer_is_not_told_and_neither_is_its_text(
    serving: Serving, hold_back: int
) -> None:
    """Nor what comes after it, nor what is kept back before it; with and without logprobs, whatever ends the
    answer there."""
    prompt, plain, _, token = late()
    told = replace(LONG, logprobs=2)
    with serving(tiny.model()) as engine:
        at_once = engine.ask(prompt, told, READ_ONLY, guard=stops(hold_back=0)).wait()
        assert at_once.tokens() == plain[: token + 1]
        whole = engine.ask(prompt, told, READ_ONLY).wait().text()
        ending = whole[len(at_once.text()) - 1 :][:1]
        for sampling in (
            told,
            replace(told, max_tokens=token + 1),
            replace(told, stop=(ending,), min_tokens=token),
            replace(told, stop_token_ids=(plain[token],), min_tokens=token),
        ):
            held = engine.ask(prompt, sampling, READ_ONLY, guard=stops(hold_back)).wait()
            assert held.outputs() == at_once.outputs()[:-hold_back]
            assert held.ending().reason is FinishReason.CONTENT_FILTER
            assert at_once.text().startswith(held.text())
            assert held.finished.usage.completion_tokens == max(0, token + 1 - hold_back)
            (found,) = held.finished.receipt.conditions
            assert (found.held_tokens, found.first_token) == (1, token)


@pytest.mark.parametrize("hold_back", [1, 3, 100])
def test_what_is_quiet_is_told_as_it_would_be_only_later(serving: Serving, hold_back: int) -> None:
    """The same pieces, for all of n: to the length's end, a stop string, a stop token, an end token."""
    prompt, plain, _, _ = late()
    never = Guard((Guarded("p/stop", Condition(Literal(0, 1e6)), Reaction.STOP),))
    sampled = SamplingParams(n=3, seed=5, max_tokens=9, logprobs=1, stop=("e", "a"), ignore_eos=True)
    for sampling in (replace(LONG, max_tokens=7), replace(LONG, stop_token_ids=(plain[4],)), LONG, sampled):
        answers = []
        with serving(tiny.model(), eos=plain[5]) as engine:
            for guard in (never, replace(never, hold_back=hold_back)):
                chosen = replace(sampling, ignore_eos=sampling is not LONG)
                answers.append(engine.ask(prompt, chosen, READ_ONLY, guard=guard).wait())
        at_once, held = answers
        for index in range(sampling.n):
            assert held.outputs(index) == at_once.outputs(index)
            assert held.text(index) == at_once.text(index)
            assert held.ending(index) == at_once.ending(index)
            deltas = [
                [event for event in answer.events if isinstance(event, Delta) and event.index == index]
                for answer in answers
            ]
            assert deltas[0] == deltas[1]
        assert held.finished.usage.completion_tokens == at_once.finished.usage.completion_tokens


@pytest.mark.parametrize("reaction", [Reaction.STOP, Reaction.REFUSE, Reaction.EDIT])
def test_what_is_given_of_an_answer_is_judged_as_its_own_tokens_are(
    serving: Serving, reaction: Reaction
) -> None:
    """A condition that holds at a token of what is given acts there, and not a token later."""
    prompt, plain, condition, token = late()
    given = plain[: token + 2]
    added = {SITES[0]: SiteProgram(rules=(rows.add(probe(5), 6.0, phase=Phase.COMPLETION),))}
    rule = Guarded("p/rule", condition, reaction, rows=added if reaction is Reaction.EDIT else {})
    guard, few = Guard((rule,), hold_back=1), replace(LONG, max_tokens=6)
    naive = Naive(tiny.model(), prompt, READ_ONLY, guard, few, given=given).run()
    assert naive.closest > 1e-4
    with serving(tiny.model()) as engine:
        whole = [*prompt, *given]
        answer = engine.ask(whole, few, READ_ONLY, guard=guard, prefilled=len(given)).wait()
        if reaction is Reaction.REFUSE:
            assert isinstance(answer.failed.error, RefusedByPolicyError)
            assert not any(isinstance(event, Delta) for event in answer.events)
            return
        assert answer.tokens() == naive.told
        (found,) = answer.finished.receipt.conditions
        assert (found.first_token, found.held_tokens) == (token, len(naive.held[0]))
        if reaction is Reaction.STOP:
            assert (answer.tokens(), answer.ending().reason) == ([], FinishReason.CONTENT_FILTER)
        else:
            assert answer.tokens() != engine.ask(whole, few, READ_ONLY).wait().tokens()


def test_rows_of_a_phase_hold_for_what_is_given_by_position(serving: Serving) -> None:
    """Without a guard too, in chunks that hold both of the prompt and of the answer."""
    whole, given = tiny.prompt_of(9, 12), 7
    for phase in (Phase.PROMPT, Phase.COMPLETION):
        program = SteeringProgram({SITES[0]: SiteProgram(edits=(rows.add(probe(5), 3.0, phase=phase),))})
        few = replace(LONG, max_tokens=6)
        prompt, own = whole[:-given], whole[-given:]
        wanted = Naive(tiny.model(), prompt, program, Guard(), few, given=own).run()
        assert wanted.closest > 1e-4
        limits = Limits(prefill_chunk=8)
        with serving(tiny.model(), limits=limits) as engine:
            answer = engine.ask(whole, few, program, prefilled=given).wait()
        assert answer.tokens() == wanted.told
        (site,) = answer.finished.receipt.sites
        assert site.tokens_edited == (12 - given if phase is Phase.PROMPT else given + 5)


def test_an_answer_that_is_all_of_a_prompt_is_none(serving: Serving) -> None:
    with serving(tiny.model()) as engine:
        for prefilled in (3, 4, -1):
            with pytest.raises(FieldError, match="answer"):
                engine.submit(GenerationRequest("r", (1, 2, 3), LONG, prefilled=prefilled), lambda _: None)
