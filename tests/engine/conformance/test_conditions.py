"""Conditions against the loop: what comes of them in every company is what the loop says."""

from dataclasses import replace

import pytest

from saegis_server.engine.api import (
    Delta,
    FieldError,
    FinishReason,
    Guard,
    Guarded,
    Limits,
    Reaction,
    RefusedByPolicyError,
    SamplingParams,
)
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal, Negation, Scope
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.guarded import READ_ONLY, SITES, Case, agrees, always, answered, late, probe
from tests.engine.naive import Naive
from tests.engine.serving import Answer, Asked, Serving

#: Those in which the most happens; see `test_the_cases_cover_what_can_happen`.
SEEDS = (4, 6, 7, 8, 11, 15, 16, 21, 24, 25, 26, 27, 28, 32, 33)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
#: Reads in chunks that most prompts do not fit in.
CHUNKED = Limits(prefill_chunk=5)


def ask(engine: Asked, case: Case) -> Answer:
    return engine.ask(case.prompt, case.sampling, case.program, guard=case.guard)


def test_the_cases_cover_what_can_happen() -> None:
    """Rows that come amid the answer, that leave again, and come again; stops; several tries for a token."""
    cases = [answered(seed) for seed in SEEDS]
    edits = [
        (each, held)
        for case, wanted in cases
        for each, held in zip(case.guard.conditions, wanted.held, strict=True)
        if each.reaction is Reaction.EDIT and held
    ]
    assert sum(held[0] >= 0 for _, held in edits) >= 6
    assert sum(held[0] == -1 for _, held in edits) >= 6
    assert sum(held != list(range(held[0], held[-1] + 1)) for _, held in edits) >= 3
    assert sum(held[-1] < 12 for _, held in edits) >= 4
    assert {wanted.ended for _, wanted in cases} == {"length", "stopped"}
    assert any(0 < len(wanted.tokens) < 14 for _, wanted in cases)
    assert any(site.bans for each, _ in edits for site in each.rows.values())


def test_alone_and_in_chunks_it_is_what_the_loop_says(serving: Serving) -> None:
    with serving(tiny.model(), limits=CHUNKED) as engine:
        for seed in SEEDS:
            case, wanted = answered(seed)
            agrees(ask(engine, case).wait(), case, wanted)


def test_all_at_once_it_is_what_the_loop_says(serving: Serving) -> None:
    """In few slots, which change hands and move, beside requests that nobody guards."""
    engine = serving(tiny.model(), max_running=5)
    answers, plain = [], []
    for seed in SEEDS:
        answers.append(ask(engine, answered(seed)[0]))
        sampling = replace(GREEDY, max_tokens=1 + seed % 9)
        plain.append(engine.ask(tiny.prompt_of(seed, 9), sampling))
    with engine:
        for seed, answer in zip(SEEDS, answers, strict=True):
            agrees(answer.wait(), *answered(seed))
        together = [answer.wait().tokens() for answer in plain]
        alone = [engine.ask(tiny.prompt_of(seed, 9), GREEDY).wait().tokens() for seed in SEEDS]
        assert together == [tokens[: 1 + seed % 9] for seed, tokens in zip(SEEDS, alone, strict=True)]


def test_a_stop_lets_no_further_token_and_no_held_back_text_out(serving: Serving) -> None:
    prompt, _, condition, token = late()
    stop = Guard((Guarded("p/stop", condition, Reaction.STOP),))
    long = replace(GREEDY, max_tokens=40)
    with serving(tiny.model()) as engine:
        plain = engine.ask(prompt, long, READ_ONLY).wait()
        stopped = engine.ask(prompt, long, READ_ONLY, guard=stop).wait()
        assert stopped.tokens() == plain.tokens()[: token + 1]
        assert stopped.ending().reason is FinishReason.CONTENT_FILTER
        assert stopped.finished.usage.completion_tokens == token + 1
        assert plain.text().startswith(stopped.text())
        # The end of the text told so far, with more behind it, is a stop string that may yet come.
        waits = replace(long, stop=(stopped.text()[-1:] + "\u2603never",))
        held = engine.ask(prompt, waits, READ_ONLY, guard=stop).wait()
        assert (held.tokens(), held.text()) == (stopped.tokens(), stopped.text()[:-1])
        assert held.ending().stop_string is None
        receipt = stopped.finished.receipt
        assert [(each.held_tokens, each.first_token) for each in receipt.conditions] == [(1, token)]


def test_each_of_several_sequences_stops_by_itself(serving: Serving) -> None:
    prompt, _, condition, _ = late()
    sampling = SamplingParams(n=6, seed=4, max_tokens=6, ignore_eos=True)
    guard = Guard((Guarded("p/stop", condition, Reaction.STOP),))
    with serving(tiny.model()) as engine:
        plain = engine.ask(prompt, sampling, READ_ONLY).wait()
        answer = engine.ask(prompt, sampling, READ_ONLY, guard=guard).wait()
    reasons = [answer.ending(index).reason for index in range(6)]
    assert {FinishReason.CONTENT_FILTER} < set(reasons) <= {FinishReason.CONTENT_FILTER, FinishReason.LENGTH}
    for index, reason in enumerate(reasons):
        tokens = answer.tokens(index)
        assert tokens == plain.tokens(index)[: len(tokens)]
        assert (reason is FinishReason.LENGTH) is (len(tokens) == 6)
    (found,) = answer.finished.receipt.conditions
    assert found.held_tokens == reasons.count(FinishReason.CONTENT_FILTER)
    filtered = [index for index, reason in enumerate(reasons) if reason is FinishReason.CONTENT_FILTER]
    assert found.first_token == min(len(answer.tokens(index)) for index in filtered) - 1


def test_a_refusal_lets_nothing_out_of_any_sequence(serving: Serving) -> None:
    guard = Guard((always("p/note", Reaction.RECORD), always("p/no", Reaction.REFUSE, message="not here")))
    with serving(tiny.model(), limits=CHUNKED) as engine:
        for n in (1, 3):
            sampling = SamplingParams(n=n, seed=1, max_tokens=5, ignore_eos=True)
            answer = engine.ask(tiny.prompt_of(2, 12), sampling, READ_ONLY, guard=guard).wait()
            error = answer.failed.error
            assert isinstance(error, RefusedByPolicyError)
            assert (error.name, str(error)) == ("p/no", "not here")
            assert not any(isinstance(event, Delta) for event in answer.events)
        assert engine.stats().used_tokens == 0


def test_what_would_refuse_a_prompt_stops_an_answer(serving: Serving) -> None:
    prompt, _, condition, token = late()
    guard = Guard((Guarded("p/no", condition, Reaction.REFUSE, "no"),))
    with serving(tiny.model()) as engine:
        answer = engine.ask(prompt, replace(GREEDY, max_tokens=40), READ_ONLY, guard=guard).wait()
        assert (len(answer.tokens()), answer.ending().reason) == (token + 1, FinishReason.CONTENT_FILTER)


def test_rows_that_came_in_force_in_the_prompt_are_as_good_as_there_from_the_start(serving: Serving) -> None:
    """Bit for bit, with the receipt: a condition that always holds against the same rows without one."""
    told = SamplingParams(seed=3, max_tokens=10, ignore_eos=True, logprobs=3, frequency_penalty=0.5)
    added = SiteProgram(rules=(rows.add(probe(5), 4.0),), bans=(rows.ban(probe(6, "relu"), 2.0),))
    site = SITES[1]
    guard = Guard((always("p/edit", Reaction.EDIT, rows={site: added}),))
    given = SteeringProgram({**READ_ONLY.sites, site: added})
    with serving(tiny.model(), limits=CHUNKED) as engine:
        wanted = engine.ask(tiny.prompt_of(4, 17), told, given).wait()
        got = engine.ask(tiny.prompt_of(4, 17), told, READ_ONLY, guard=guard).wait()
        plain = engine.ask(tiny.prompt_of(4, 17), told, READ_ONLY).wait()
    assert got.outputs() == wanted.outputs() != plain.outputs()
    assert got.finished.receipt.sites == wanted.finished.receipt.sites
    assert got.finished.usage == wanted.finished.usage
    assert (plain.finished.receipt.steered, got.finished.receipt.steered) == (False, True)


def test_a_guard_that_does_not_fit_is_not_admitted(serving: Serving) -> None:
    engine = serving(tiny.model())
    beyond = Guard((Guarded("p/far", Condition(Negation(Literal(1, 0.0))), Reaction.STOP),))
    with pytest.raises(FieldError, match=r"p/far looks at reading 1; the program has 1 guards") as error:
        engine.ask([1], GREEDY, READ_ONLY, guard=beyond)
    assert error.value.field == "guard.conditions[0]"
    for bad in (
        always("p/none", Reaction.EDIT),
        always("p/idle", Reaction.STOP, rows={SITES[0]: SiteProgram()}),
    ):
        with pytest.raises(FieldError, match=bad.name):
            engine.ask([1], GREEDY, READ_ONLY, guard=Guard((bad,)))
    crowded = SiteProgram(rules=tuple(rows.add(probe(row), 1.0) for row in range(Capacity().rules + 1)))
    opposed = tuple(
        rows.ban(rows.Probe(f"{sign}", sign * probe(1).read, probe(1).read, gate_bias=5.0, value_bias=5.0))
        for sign in (1.0, -1.0)
    )
    for added, message in (
        (crowded, f"room for {Capacity().rules}"),
        (SiteProgram(bans=opposed), "oppose each other"),
    ):
        edit = always("p/edit", Reaction.EDIT, rows={SITES[0]: added})
        with pytest.raises(SteeringError, match=message):
            engine.ask([1], GREEDY, READ_ONLY, guard=Guard((edit,)))
    elsewhere = {Site.parse("layers.9"): SiteProgram(rules=(rows.add(probe(1), 1.0),))}
    with pytest.raises(SteeringError, match="not a site of this server"):
        engine.ask([1], GREEDY, READ_ONLY, guard=Guard((always("p/edit", Reaction.EDIT, rows=elsewhere),)))
    narrow = SteeringProgram({SITES[0]: SiteProgram(guards=(rows.Probe.direction(probe(1).read[:5]),))})
    with pytest.raises(SteeringError, match="width"):
        engine.ask([1], GREEDY, narrow)


def test_a_prompt_is_judged_once(serving: Serving) -> None:
    prompt = tiny.prompt_of(8, 11)
    plain = Naive(tiny.model(), prompt, READ_ONLY, Guard(), GREEDY).run()
    highest = max(row[0] for row in plain.values[: len(prompt)])
    edit = {SITES[2]: SiteProgram(rules=(rows.add(probe(5), 4.0),))}
    for level, held in ((highest - 1e-3, 12), (highest + 1e-3, 0)):
        condition = Condition(Literal(0, level), Scope.PROMPT, sticky=False)
        guard = Guard((Guarded("p/prompt", condition, Reaction.EDIT, rows=edit),))
        with serving(tiny.model(), limits=CHUNKED) as engine:
            answer = engine.ask(prompt, GREEDY, READ_ONLY, guard=guard).wait()
            (found,) = answer.finished.receipt.conditions
            assert (found.held_tokens, found.first_token) == (held, -1 if held else None)
            assert answer.finished.receipt.steered is bool(held)
