"""Endings in the embedded engine, seen from within its steps: cancelled and too late."""

import threading
import time
from dataclasses import replace

import pytest

from saegis_server.engine.api import (
    DeadlineExceededError,
    FinishReason,
    SamplingParams,
)
from tests.engine import tiny

LONG = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)


def test_a_deadline_that_passes_while_it_runs_ends_it() -> None:
    step = tiny.step(tiny.model())
    with tiny.RunningEngine(step) as engine:
        engine.ask([1, 2]).wait()
        pause, decode = threading.Event(), step.decode

        def slow(*arguments: object) -> object:
            pause.wait(0.02)
            return decode(*arguments)  # type: ignore[arg-type]

        step.decode = slow  # type: ignore[method-assign, assignment]
        late = engine.ask([1, 2], LONG, deadline=time.monotonic() + 0.3)
        assert isinstance(late.wait().failed.error, DeadlineExceededError)
        assert 0 < len(late.tokens()) < 150
        assert late.failed.done.usage.completion_tokens == len(late.tokens()), "what was done is told"
        step.decode = decode  # type: ignore[method-assign]
        assert len(engine.ask([1, 2]).wait().tokens()) == 24


def test_a_request_that_expired_in_the_queue_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    step = tiny.step(tiny.model())
    read, prefill = [], step.prefill

    def watch(slot: int, tokens: list[int], *others: object) -> object:
        read.append(tokens)
        return prefill(slot, tokens, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(step, "prefill", watch)
    engine = tiny.RunningEngine(step)
    late = engine.ask([9, 9, 9], deadline=time.monotonic() - 1.0)
    intime = engine.ask([1, 2])
    with engine:
        assert isinstance(late.wait().failed.error, DeadlineExceededError)
        intime.wait()
    assert read == [[1, 2]]


def test_a_cancelled_answer_has_the_text_of_its_tokens() -> None:
    """What was held back for a stop string or a character is told with the end."""
    forced = replace(LONG, logit_bias={33: 100.0}, stop=(9 * str(tiny.tokenizer().decode([33])),))
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        decode, steps = engine.step.decode, [0]

        def watch(*arguments: object) -> object:
            steps[0] += 1
            if steps[0] == 4:
                engine.cancel("gone")
            return decode(*arguments)  # type: ignore[arg-type]

        engine.step.decode = watch  # type: ignore[method-assign, assignment]
        answer = engine.ask([1, 2], forced, request_id="gone").wait()
    assert answer.ending().reason is FinishReason.ABORT
    assert 4 <= len(answer.tokens()) < 9
    assert answer.text() == tiny.tokenizer().decode(answer.tokens())
