"""Endings that take more than a token: cancelled, stopped, and what is asked beside requests."""

import threading

import pytest
import torch

from saegis_server.engine.api import (
    EngineStoppedError,
    Event,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.serving import Answer, Asked, Serving

LONG = SamplingParams(temperature=0.0, max_tokens=150, ignore_eos=True)


class CancelAfter(Answer):
    """Cancels its own request once it has so many tokens, and notes the engine's step."""

    def __init__(self, engine: Asked, name: str, tokens: int) -> None:
        super().__init__()
        self.engine, self.name, self.after = engine, name, tokens
        self.asked_at: int | None = None

    def __call__(self, events: list[Event]) -> None:
        super().__call__(events)
        if self.asked_at is None and len(self.tokens()) >= self.after:
            self.asked_at = self.engine.stats().steps
            self.engine.cancel(self.name)


def test_a_cancelled_slot_is_free_within_two_steps(serving: Serving) -> None:
    with serving(tiny.model()) as engine:
        beside = engine.ask([3, 4, 5], LONG)
        answer = CancelAfter(engine, "gone", 5)
        engine.submit(GenerationRequest("gone", (1, 2, 3), LONG), answer)
        assert answer.wait().ending().reason is FinishReason.ABORT
        assert answer.asked_at is not None
        # One token a step: those that came after the cancellation tell how many steps it took.
        assert len(answer.tokens()) <= 5 + 2
        assert answer.finished.usage.completion_tokens == len(answer.tokens())
        assert len(beside.wait().tokens()) == 150


def test_stopping_fails_what_is_in_flight_and_leaves_empty_books(serving: Serving) -> None:
    with serving(tiny.model(), max_running=2) as engine:
        begun = threading.Event()

        class Begun(Answer):
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


def test_an_engine_that_never_started_tells_those_who_wait_that_it_stops(serving: Serving) -> None:
    engine = serving(tiny.model())
    answer = engine.ask([1, 2])
    engine.stop()
    assert isinstance(answer.wait(1).failed.error, EngineStoppedError)
    assert engine.stats().waiting == 0


def test_a_capture_between_steps_disturbs_nobody(serving: Serving) -> None:
    tokens = tiny.prompt_of(3, 10)
    with serving(tiny.model()) as engine:
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


def test_a_repetition_penalty_is_that_of_generate(serving: Serving) -> None:
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
    with serving(model) as engine:
        assert engine.ask(prompt, sampling).wait().tokens() == wanted
        assert engine.ask(prompt).wait().tokens()[:20] != wanted
