"""An engine of any kind in a test: requests that are easily asked, and their events gathered."""

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import pytest
from transformers import PreTrainedModel

from saegis_server.engine.api import (
    UNGUARDED,
    Delta,
    Engine,
    Event,
    FirstToken,
    GenerationRequest,
    Guard,
    Limits,
    RequestFailed,
    RequestFinished,
    SamplingParams,
    SequenceFinished,
)
from saegis_server.engine.readouts import NO_READOUTS, Readouts, TokenOutput
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.program import UNSTEERED, SteeringProgram
from saegis_server.steering.site import Site


class Answer:
    """The events of one request, gathered."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._done = threading.Event()

    def __call__(self, events: list[Event]) -> None:
        self.events.extend(events)
        if isinstance(self.events[-1], RequestFinished | RequestFailed):
            self._done.set()

    def wait(self, seconds: float = 240.0) -> "Answer":
        """Wait for the last event."""
        assert self._done.wait(seconds), "the request did not end"
        return self

    def outputs(self, index: int = 0) -> list[TokenOutput]:
        """The tokens of one sequence."""
        deltas = [event for event in self.events if isinstance(event, Delta) and event.index == index]
        return [output for delta in deltas for output in delta.tokens]

    def tokens(self, index: int = 0) -> list[int]:
        """The token ids of one sequence."""
        return [output.token_id for output in self.outputs(index)]

    def text(self, index: int = 0) -> str:
        """The text of one sequence."""
        return "".join(
            event.text for event in self.events if isinstance(event, Delta) and event.index == index
        )

    def ending(self, index: int = 0) -> SequenceFinished:
        """How one sequence ended."""
        (ending,) = [
            event for event in self.events if isinstance(event, SequenceFinished) and event.index == index
        ]
        return ending

    @property
    def finished(self) -> RequestFinished:
        """The last event of a request that was served."""
        last = self.events[-1]
        assert isinstance(last, RequestFinished), last
        return last

    @property
    def failed(self) -> RequestFailed:
        """The last event of a request that was not."""
        last = self.events[-1]
        assert isinstance(last, RequestFailed), last
        return last


def require_same(outputs: Sequence[TokenOutput], wanted: Sequence[TokenOutput], bits: bool = True) -> None:
    """The same tokens with all that is told of them, to the last bit or, without `bits`, but for rounding."""
    if bits:
        assert list(outputs) == list(wanted)
        return
    assert [one.token_id for one in outputs] == [one.token_id for one in wanted]
    for one, other in zip(outputs, wanted, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        for mine, theirs in zip(one.watched, other.watched, strict=True):
            assert (mine.before, mine.after) == pytest.approx((theirs.before, theirs.after), abs=1e-4)


class Asked:
    """An engine with helpers for tests; a context manager that leaves nothing in its books."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.submit, self.cancel, self.stats = engine.submit, engine.cancel, engine.stats
        self.score, self.capture = engine.score, engine.capture
        self.start, self.stop = engine.start, engine.stop
        self._made = 0

    @property
    def error(self) -> BaseException | None:
        """What the engine died of."""
        return self.engine.error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        stats = self.stats()
        assert (stats.running, stats.waiting, stats.used_tokens) == (0, 0, 0)

    def ask(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None = None,
        program: SteeringProgram = UNSTEERED,
        request_id: str | None = None,
        deadline: float | None = None,
        guard: Guard = UNGUARDED,
        prefilled: int = 0,
        readouts: Readouts = NO_READOUTS,
    ) -> Answer:
        """Submit a request, greedy with 24 tokens if not told otherwise."""
        self._made += 1
        chosen = sampling or SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
        answer = Answer()
        name = request_id or f"request-{self._made}"
        request = GenerationRequest(
            name, tuple(prompt), chosen, program, deadline, guard, prefilled=prefilled, readouts=readouts
        )
        self.submit(request, answer)
        return answer


class Serving(Protocol):
    """Makes an engine on a model of `tiny`, not started, with its tokenizer, sites and room for 160 tokens.

    max_running: how many sequences it runs at once; limits: small chunks if not told otherwise; ranked: SAEs
    that decide by rank, at their sites.
    """

    def __call__(
        self,
        model: PreTrainedModel,
        max_running: int = 8,
        limits: Limits | None = None,
        first_token: FirstToken | None = None,
        eos: int = 257,
        ranked: Mapping[Site, SparseAutoencoder] | None = None,
    ) -> Asked: ...
