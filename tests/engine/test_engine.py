"""The embedded engine's thread, and what becomes of requests where it fails."""

import threading

import pytest
import torch

from saegis_server.engine.api import (
    EngineStoppedError,
    Event,
    GenerationRequest,
    RequestFinished,
    SamplingParams,
)
from saegis_server.engine.torch.step import Extent, StepOutput
from saegis_server.engine.torch.text import TextStream
from tests.engine import tiny


def greedy(**changes: object) -> SamplingParams:
    """Greedy parameters with changes."""
    values: dict[str, object] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True, **changes}
    return SamplingParams(**values)  # type: ignore[arg-type]


def test_when_the_thread_dies_everybody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    step = tiny.step(tiny.model())
    engine = tiny.RunningEngine(step)

    def fail(extent: Extent, live: int, sampled: bool) -> StepOutput:
        raise ArithmeticError("nobody foresaw it")

    monkeypatch.setattr(step, "decode", fail)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    answers = [engine.ask([1, 2, 3]) for _ in range(3)]
    engine.start()
    for answer in answers:
        assert isinstance(answer.wait().failed.error, EngineStoppedError)
    engine.stop()
    assert isinstance(engine.error, ArithmeticError)


def test_the_engine_runs_with_as_many_threads_as_the_step_was_compiled_for() -> None:
    def set_elsewhere(count: int) -> None:
        other = threading.Thread(target=torch.set_num_threads, args=(count,))
        other.start()
        other.join()

    own = torch.get_num_threads()
    set_elsewhere(own + 1)
    try:
        assert torch.get_num_threads() == own, "the number belongs to a thread"
        seen: set[int] = set()
        done = threading.Event()

        def sink(events: list[Event]) -> None:
            seen.add(torch.get_num_threads())
            if isinstance(events[-1], RequestFinished):
                done.set()

        with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
            engine.submit(GenerationRequest("one", (1, 2, 3), greedy()), sink)
            assert done.wait(60)
        assert seen == {own}
    finally:
        set_elsewhere(own)


def test_an_answer_that_cannot_be_decoded_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    push = TextStream.push

    def refuse(stream: TextStream, token: int, may_stop: bool = True) -> str:
        if token == 33:
            raise ValueError("no such piece")
        return push(stream, token, may_stop)

    monkeypatch.setattr(TextStream, "push", refuse)
    with tiny.RunningEngine(tiny.step(tiny.model())) as engine:
        beside = engine.ask(tiny.prompt_of(1, 10), greedy(logit_bias={33: -100.0}))
        failed = engine.ask(tiny.prompt_of(2, 10), greedy(logit_bias={33: 100.0}))
        assert "could not be decoded" in str(failed.wait().failed.error)
        assert len(beside.wait().tokens()) == 24
