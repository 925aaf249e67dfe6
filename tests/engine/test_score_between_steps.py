"""Scores between steps: running requests keep their bits and wait for a chunk at most, and scores end."""

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch

from saegis_server.engine.api import (
    EngineStoppedError,
    Limits,
    QueueFullError,
    SamplingParams,
    SteeringDivergedError,
)
from saegis_server.engine.readouts import TokenOutput
from saegis_server.engine.torch.context import KVCache
from saegis_server.engine.torch.step import Step
from saegis_server.steering.rows import Phase
from tests.engine import tiny
from tests.engine.hooked import destructive, random_program
from tests.engine.serving import Answer

LONG_TEXT = tiny.prompt_of(8, 150)


class Reads:
    """Notes the chunks that a step reads for scores, each by its first token, and its decodes as -1."""

    def __init__(self, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts: list[int] = []
        self.first = threading.Event()
        read, decode = step.read, step.decode

        def watched(tokens: list[int], start: int, cache: KVCache, *views: Any) -> Any:
            self.starts.append(start)
            self.first.set()
            self.on_read()
            return read(tokens, start, cache, *views)

        def counted(*arguments: Any) -> Any:
            self.starts.append(-1)
            return decode(*arguments)

        monkeypatch.setattr(step, "read", watched)
        monkeypatch.setattr(step, "decode", counted)

    def on_read(self) -> None:
        """What a test does in the engine's thread before each reading."""


@pytest.fixture
def engine() -> tiny.RunningEngine:
    """An engine that has not begun; what it is asked for first, it finds together."""
    return tiny.RunningEngine(tiny.step(tiny.model()))


def four_requests(engine: tiny.RunningEngine) -> list[Answer]:
    sampling = [
        SamplingParams(temperature=0.9, seed=seed, max_tokens=40, ignore_eos=True, logprobs=2)
        for seed in range(4)
    ]
    return [
        engine.ask(tiny.prompt_of(seed, 20 + seed), sampling[seed], random_program(seed, 5 * seed))
        for seed in range(4)
    ]


def test_running_requests_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[TokenOutput]] = []
    for scored in (False, True):
        engine = tiny.RunningEngine(tiny.step(tiny.model()))
        answers = four_requests(engine)
        reads = Reads(engine.step, monkeypatch)
        programs = [random_program(seed, 3 * seed) for seed in range(6)] if scored else []
        scores = [engine.score(LONG_TEXT, program) for program in programs]
        broken = engine.score(LONG_TEXT, destructive(Phase.ALL)) if scored else None
        with engine:
            outputs = [answer.wait().outputs() for answer in answers]
            receipts = [answer.finished.receipt for answer in answers]
            assert all(len(score.result(60).logprobs) == 149 for score in scores)
            if broken is not None:
                with pytest.raises(SteeringDivergedError):
                    broken.result(60)
                decodes = [place for place, start in enumerate(reads.starts) if start == -1]
                between = reads.starts[decodes[0] : decodes[-1]]
                assert max(between) > 0, "nothing was read between two steps"
        wanted = wanted or outputs
        assert outputs == wanted
        assert all(receipt.steered for receipt in receipts[1:])


def test_nothing_is_left_in_the_tables(engine: tiny.RunningEngine) -> None:
    tables = engine.step.slots.tables.values()
    kinds = [
        kind for each in tables for kind in (each.edits, each.rules, each.bounds, each.watches, each.guards)
    ]
    tensors = [tensor for kind in kinds for tensor in kind]
    before = [tensor.clone() for tensor in tensors]
    with engine:
        engine.score(LONG_TEXT, random_program(3, 20)).result(60)
        for tensor, old in zip(tensors, before, strict=True):
            assert torch.equal(tensor, old)


def test_a_long_text_is_read_a_chunk_between_two_steps(
    engine: tiny.RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(engine.step, monkeypatch)
    answer = engine.ask([1, 2, 3])
    score, other = engine.score(LONG_TEXT), engine.score([1, 2])
    with engine:
        answer.wait()
        score.result(60)
        other.result(60)
    begun = reads.starts.index(-1)
    chunks = [start for start in range(0, 150, 16) for _ in ("plain", "steered")]
    assert [start for start in reads.starts if start >= 0] == [*chunks, 0, 0]
    assert all(
        before == after or -1 in (before, after)
        for before, after in zip(reads.starts[begun:], reads.starts[begun + 1 :], strict=False)
    )


def test_a_score_that_nobody_wants_any_more_is_not_read_on(
    engine: tiny.RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(engine.step, monkeypatch)
    gone, other = engine.score(LONG_TEXT), engine.score([1, 2])
    monkeypatch.setattr(reads, "on_read", gone.cancel)
    with engine:
        assert len(other.result(60).logprobs) == 1
    assert reads.starts == [0, 0, 0, 0]
    with pytest.raises(CancelledError):
        gone.result(0)


def test_stopping_ends_scores_where_they_are(
    engine: tiny.RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(engine.step, monkeypatch)
    monkeypatch.setattr(reads, "on_read", engine.stop)
    begun, waiting = engine.score(LONG_TEXT), engine.score([1, 2])
    with engine:
        for score in (begun, waiting):
            with pytest.raises(EngineStoppedError):
                score.result(60)
        with pytest.raises(EngineStoppedError):
            engine.score([1, 2])
    assert reads.starts == [0, 0]


def test_an_engine_that_never_started_tells_its_scores_that_it_stops(engine: tiny.RunningEngine) -> None:
    score, captured = engine.score([1, 2]), engine.capture([1, 2])
    engine.stop()
    for future in (score, captured):
        with pytest.raises(EngineStoppedError):
            future.result(0)


def test_no_more_scores_wait_than_the_queue_holds() -> None:
    engine = tiny.RunningEngine(tiny.step(tiny.model()), limits=Limits(queue=2))
    scores = [engine.score([1, 2]) for _ in range(2)]
    for more in (engine.score, engine.capture):
        with pytest.raises(QueueFullError):
            more([1, 2])
    with engine:
        assert all(score.result(60).logprobs == scores[0].result(60).logprobs for score in scores)
        assert len(engine.score([1, 2]).result(60).logprobs) == 1
