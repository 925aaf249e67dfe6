"""Endings that take more than a token: cancelled, too late, stopped, and what is asked between two steps."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from saegis_server.engine.api import (
    DeadlineExceededError,
    EngineStoppedError,
    Event,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from saegis_server.engine.sites import Site
from tests.engine import tiny

LONG = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)


class CancelAfter(tiny.Answer):
    """Cancels its own request once it has so many tokens, and notes the engine's step."""

    def __init__(self, engine: tiny.RunningEngine, name: str, tokens: int) -> None:
        super().__init__()
        self.engine, self.name, self.after = engine, name, tokens
        self.asked_at: int | None = None

    def __call__(self, events: list[Event]) -> None:
        super().__call__(events)
        if self.asked_at is None and len(self.tokens()) >= self.after:
            self.asked_at = self.engine.stats().steps
            self.engine.cancel(self.name)


def test_a_cancelled_slot_is_free_within_two_steps() -> None:
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        beside = engine.ask([3, 4, 5], LONG)
        answer = CancelAfter(engine, "gone", 5)
        engine.submit(GenerationRequest("gone", (1, 2, 3), LONG), answer)
        assert answer.wait().ending().reason is FinishReason.ABORT
        assert answer.asked_at is not None
        # One token a step: those that came after the cancellation tell how many steps it took.
        assert len(answer.tokens()) <= 5 + 2
        assert answer.finished.usage.completion_tokens == len(answer.tokens())
        assert len(beside.wait().tokens()) == 150


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


def test_stopping_fails_what_is_in_flight_and_leaves_empty_books() -> None:
    with tiny.RunningEngine(tiny.step(tiny.model(), slots=2), max_running=2) as engine:
        begun = threading.Event()

        class Begun(tiny.Answer):
            def __call__(self, events: list[Event]) -> None:
                super().__call__(events)
                begun.set()

        running = Begun()
        engine.submit(GenerationRequest("running", (1, 2), LONG), running)
        others = [engine.ask([1, 2], LONG) for _ in range(4)]
        assert begun.wait(30)
        engine.stop()
        for answer in (running, *others):
            assert isinstance(answer.wait(1).failed.error, EngineStoppedError)
            assert answer.failed.done.usage.completion_tokens == len(answer.tokens())
            assert answer.failed.done.reasons == (None,)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.used_tokens) == (0, 0, 0)
        with pytest.raises(EngineStoppedError):
            engine.capture([1, 2])


def test_an_engine_that_never_started_tells_those_who_wait_that_it_stops() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model()))
    answer = engine.ask([1, 2])
    engine.stop()
    assert isinstance(answer.wait(1).failed.error, EngineStoppedError)
    assert engine.stats().waiting == 0


def test_a_capture_between_steps_disturbs_nobody() -> None:
    tokens = tiny.prompt_of(3, 10)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        wanted = engine.ask([1, 2, 3], LONG).wait().tokens()
        answer = engine.ask([1, 2, 3], LONG)
        captured = [engine.capture(tokens) for _ in range(5)]
        found = [future.result(30) for future in captured]
        assert answer.wait().tokens() == wanted
        with pytest.raises(IndexError):
            engine.capture([9999]).result(30)
        assert len(engine.ask([1, 2]).wait().tokens()) == 24
    with torch.inference_mode():
        hidden = tiny.model()(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for one in found:
        torch.testing.assert_close(one[Site.parse("layers.1.resid_post")], hidden[2][0], atol=1e-4, rtol=1e-4)


def test_a_repetition_penalty_is_that_of_generate() -> None:
    prompt = tiny.prompt_of(8, 12)
    sampling = SamplingParams(temperature=0.0, repetition_penalty=1.4, max_tokens=20, ignore_eos=True)
    model = tiny.model()
    ids = torch.tensor([prompt])
    wanted = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.4,
    )[0, 12:].tolist()
    with tiny.RunningEngine(tiny.step(model)) as engine:
        assert engine.ask(prompt, sampling).wait().tokens() == wanted
        assert engine.ask(prompt).wait().tokens()[:20] != wanted


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
