"""Sequences: what the engine knows of each text that it is writing, and of the request that it belongs to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from saegis_server.engine.panel import Seat
from saegis_server.engine.request_guard import RequestGuard
from saegis_server.engine.requests import (
    Delta,
    EngineError,
    Event,
    FinishReason,
    GenerationRequest,
    Receipt,
    RequestFailed,
    RequestFinished,
    SequenceFinished,
    Timings,
    TokenOutput,
    Usage,
    Watched,
)
from saegis_server.engine.sites import Site
from saegis_server.engine.step import SMALLEST, Extent
from saegis_server.engine.tally import Tally
from saegis_server.engine.text import TextStream
from saegis_server.steering.program import SiteProgram

#: Takes a request's events, in order; runs on the engine's thread and must not block.
Sink = Callable[[list[Event]], None]


class RowCounts(NamedTuple):
    """The largest number of rows of each kind that a program has at any site."""

    edits: int
    rules: int
    bans: int
    watches: int
    guards: int

    @property
    def steer(self) -> bool:
        """Whether any of them may change an activation."""
        return max(self.edits, self.rules, self.bans) > 0

    @classmethod
    def of(cls, program: Mapping[Site, SiteProgram]) -> "RowCounts":
        """Count the rows of a program."""
        sites = program.values()
        return cls(
            max((len(site.edits) for site in sites), default=0),
            max((len(site.rules) for site in sites), default=0),
            max((len(site.bans) for site in sites), default=0),
            max((len(site.watches) for site in sites), default=0),
            max((len(site.guards) for site in sites), default=0),
        )


class Running:
    """A request in flight: its sequences, its events, and what was done to it so far."""

    def __init__(
        self,
        request: GenerationRequest,
        program: dict[Site, SiteProgram],
        seed: int,
        sink: Sink,
        guard: RequestGuard | None = None,
    ) -> None:
        """`program` is the request's own, by site; `guard` None where nothing is to be judged."""
        self.request, self.program, self.seed, self.sink, self.guard = request, program, seed, sink, guard
        self.rows = RowCounts.of(program)
        self.watches = any(site.watches for site in program.values())
        self.events: list[Event] = []
        self.sequences: list[Sequence] = []
        self.left = request.sampling.n
        self.completion_tokens = 0
        self.tally = Tally(request.program, program if guard is None else guard.plan.everything)
        self.submitted = time.monotonic()
        self.admitted: float | None = None
        self.first_token: float | None = None
        self.closed = False

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed."""
        return self.request.deadline is not None and time.monotonic() >= self.request.deadline

    def fail(self, error: EngineError) -> None:
        """End it with an error."""
        if not self.closed:
            self.closed = True
            self.events.append(RequestFailed(error))

    def close(self) -> None:
        """End it, all its sequences being finished."""
        if self.closed:
            return
        self.closed = True
        now = time.monotonic()
        admitted = self.admitted or now
        first = self.first_token or now
        usage = Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self.completion_tokens,
            cached_tokens=0,
            steered_tokens=self.tally.steered_tokens,
        )
        timings = Timings(admitted - self.submitted, first - admitted, now - first)
        self.events.append(RequestFinished(usage, self._receipt(), timings))

    def _receipt(self) -> Receipt:
        if self.guard is None:
            return self.tally.receipt(self.program)
        return self.guard.complete(self.tally.receipt(self.guard.came_in_force))


@dataclass(eq=False)
class Sequence:
    """One text of a request. Its tokens lie in the slot `slot` while it runs.

    rows: how many its slot has in force. seat: where it is judged; None while it has no slot, or no guard.
    """

    running: Running
    index: int
    stops: frozenset[int]
    limit: int
    text: TextStream
    slot: int = -1
    prefilled: int = 0
    generated: int = 0
    last_token: int = -1
    finished: bool = field(default=False)
    loaded: bool = field(default=False)
    seat: Seat | None = None
    rows: RowCounts = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.running.rows

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.running.request.prompt

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.running.request.tenant

    @property
    def length(self) -> int:
        """How many tokens its slot holds, the one about to be fed included."""
        return self.prefilled + max(self.generated - 1, 0)

    @property
    def seed(self) -> int:
        """Its own seed: those of a request's sequences follow each other."""
        return (self.running.seed + self.index) % 2**64

    def take(self, token: int, logprobs: Tensor | None, watched: list[list[list[float]]] | None) -> None:
        """Add a generated token; finishes the sequence if it ends here.

        logprobs: float32 [V] of the model's distribution; watched: [sites][watches][before, after].
        """
        self.generated, self.last_token = self.generated + 1, token
        running, sampling = self.running, self.running.request.sampling
        running.completion_tokens += 1
        if running.first_token is None:
            running.first_token = time.monotonic()
        output = self._output(token, logprobs, watched)
        if token in self.stops and self.generated > sampling.min_tokens:
            running.events.append(Delta(self.index, self.text.finish(), (output,)))
            return self.finish(FinishReason.STOP, stop_token=token)
        text = self.text.push(token, may_stop=self.generated >= sampling.min_tokens)
        if self.text.matched is not None:
            running.events.append(Delta(self.index, text, (output,)))
            return self.finish(FinishReason.STOP, stop_string=self.text.matched)
        ended = self.generated >= self.limit
        running.events.append(Delta(self.index, text + (self.text.finish() if ended else ""), (output,)))
        return self.finish(FinishReason.LENGTH) if ended else None

    def finish(
        self, reason: FinishReason, stop_token: int | None = None, stop_string: str | None = None
    ) -> None:
        """End the sequence; it keeps its slot until the engine takes it out."""
        if self.finished:
            return
        self.finished = True
        self.running.events.append(SequenceFinished(self.index, reason, stop_token, stop_string))

    def _output(
        self, token: int, logprobs: Tensor | None, watched: list[list[list[float]]] | None
    ) -> TokenOutput:
        wanted = self.running.request.sampling.logprobs
        readings: tuple[Watched, ...] = ()
        if watched is not None:
            readings = tuple(Watched(before, after) for site in watched for before, after in site)
        if wanted is None or logprobs is None:
            return TokenOutput(token, watched=readings)
        top = logprobs.topk(wanted) if wanted else None
        alternatives = (
            () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )
        return TokenOutput(token, float(logprobs[token]), alternatives, readings)


def extent_of(batch: int, length: int, sequences: list[Sequence]) -> Extent:
    """How much a step of some sequences reads: `batch` rows, `length` tokens, as many rows as they have."""
    kinds = zip(*{sequence.rows for sequence in sequences}, strict=True)
    return Extent(max(batch, SMALLEST), max(length, SMALLEST), *(max(SMALLEST, *kind) for kind in kinds))
