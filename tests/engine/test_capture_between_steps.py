"""Captures between steps: running requests go on while texts are read, and what is read is what it is."""

from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from saegis_server.engine.api import SamplingParams
from saegis_server.engine.torch.engine import TOKENS_FOR_A_STEP
from tests.engine import tiny

TEXT = tiny.prompt_of(3, 80)


def test_steps_pass_between_two_captures_while_requests_run() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    sampling = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    answers = [engine.ask(tiny.prompt_of(seed, 20), sampling) for seed in range(2)]
    steps: list[int] = []

    def note(_: Future[Any]) -> None:
        """Called in the engine's thread, between two steps."""
        steps.append(engine.engine.stats().steps)

    captures = [engine.engine.capture(TEXT) for _ in range(4)]
    for each in captures:
        each.add_done_callback(note)
    with engine:
        read = [each.result(60) for each in captures]
        alone = [each.wait().tokens() for each in answers]
        quiet = engine.engine.capture(TEXT).result(60)
    waits = [after - before for before, after in pairwise(steps)]
    # The first is read before anything runs.
    assert waits[0] >= 0
    assert min(waits[1:]) >= len(TEXT) // TOKENS_FOR_A_STEP
    for found in read:
        assert all(torch.equal(found[site], quiet[site]) for site in quiet)
    again = tiny.RunningEngine(tiny.step(tiny.model()))
    asked = [again.ask(tiny.prompt_of(seed, 20), sampling) for seed in range(2)]
    with again:
        assert [each.wait().tokens() for each in asked] == alone


def test_a_capture_that_waits_for_steps_keeps_no_score_waiting() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    long = tiny.prompt_of(3, 120)
    sampling = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    answer = engine.ask(tiny.prompt_of(1, 20), sampling)
    # The first is read at once; the second waits for steps to pass, and the score is asked for last.
    captures = [engine.engine.capture(long) for _ in range(2)]
    score = engine.score(TEXT)
    ended: list[str] = []
    captures[1].add_done_callback(lambda _: ended.append("capture"))
    score.add_done_callback(lambda _: ended.append("score"))
    with engine:
        assert [each.result(240).keys() for each in captures]
        assert score.result(240).logprobs
        answer.wait()
    assert ended == ["score", "capture"]


def test_captures_of_an_idle_engine_do_not_wait() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    with engine:
        ask = partial(engine.engine.capture, TEXT)
        assert [ask().result(60).keys() for _ in range(3)]
        assert engine.engine.stats().steps == 0
