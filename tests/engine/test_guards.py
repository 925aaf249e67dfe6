"""Guards in the embedded engine: what is read when, and what they leave behind."""

from dataclasses import replace
from itertools import pairwise

from saegis_server.engine.api import (
    Guard,
    Guarded,
    Limits,
    Reaction,
    SamplingParams,
)
from saegis_server.steering import rows
from saegis_server.steering.conditions import Condition, Literal
from saegis_server.steering.program import SiteProgram
from tests.engine import tiny
from tests.engine.guarded import (
    READ_ONLY,
    SITES,
    always,
    answered,
    late,
    probe,
)

LONG = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
ADDED = {SITES[1]: SiteProgram(rules=(rows.add(probe(5), 4.0),))}


def test_a_prompt_that_is_read_again_waits_its_turn_like_any_other() -> None:
    """Between two steps no more is read than the limit, and the reader is first in line again."""
    limits = Limits(prefill_chunk=8, prefill_between_steps=8)
    guard = Guard((always("p/edit", Reaction.EDIT, rows=ADDED),))
    step = tiny.step(tiny.model())
    taken: list[int] = []
    prefill, decode = step.prefill, step.decode

    def reading(slot: int, tokens: list[int], start: int, *others: object, **named: object) -> object:
        taken.append(start)
        return prefill(slot, tokens, start, *others, **named)  # type: ignore[arg-type]

    def decoding(*arguments: object) -> object:
        taken.append(-1)
        return decode(*arguments)  # type: ignore[arg-type]

    step.prefill, step.decode = reading, decoding  # type: ignore[method-assign, assignment]
    engine = tiny.RunningEngine(step, limits=limits)
    engine.ask([1, 2, 3], LONG)
    long = engine.ask(tiny.prompt_of(1, 24), replace(LONG, max_tokens=2), READ_ONLY, guard=guard)
    short = engine.ask([4, 5], replace(LONG, max_tokens=1))
    with engine:
        for answer in (long, short):
            answer.wait()
    reads = [start for start in taken if start >= 0]
    assert reads == [0, 0, 8, 16, 0, 8, 16, 0]
    assert all(-1 in pair for pair in pairwise(taken[1:]) if max(pair) > 0)


def test_what_is_held_back_is_not_told_where_the_request_is_cancelled() -> None:
    prompt, plain, _, _ = late()
    never = Guard((Guarded("p/stop", Condition(Literal(0, 1e6)), Reaction.STOP),), hold_back=1)
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    fed: list[int] = []
    decode = engine.step.decode

    def watch(*arguments: object) -> object:
        fed.append(len(fed))
        if len(fed) == 4:
            engine.cancel("gone")
        return decode(*arguments)  # type: ignore[arg-type]

    engine.step.decode = watch  # type: ignore[method-assign, assignment]
    with engine:
        answer = engine.ask(prompt, LONG, READ_ONLY, "gone", guard=never).wait()
    assert answer.tokens() == plain[: len(answer.tokens())]
    # Each step told the token that it was fed; the one chosen last was never fed.
    assert len(answer.tokens()) == len(fed) == answer.finished.usage.completion_tokens


def test_nothing_is_left_in_the_tables() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model(), slots=2), max_running=2)
    answers = []
    for seed in (4, 6, 7, 8):
        case, _ = answered(seed)
        answers.append(engine.ask(case.prompt, case.sampling, case.program, guard=case.guard))
    with engine:
        for answer in answers:
            answer.wait()
        tables = engine.step.slots.tables.values()
        assert not any(bool(rows.vectors.any()) for table in tables for rows in (table.rules, table.bounds))
