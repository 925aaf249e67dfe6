"""Sequences: what the engine knows of each text that it is writing, and of the request that it belongs to."""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import (
    Delta,
    EngineError,
    Event,
    FinishReason,
    GenerationRequest,
    RequestFailed,
    RequestFinished,
    SequenceFinished,
    Sink,
)
from saegis_server.engine.counts import Acted, Firing
from saegis_server.engine.readouts import TokenOutput, Watched
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.engine.torch.activity import ActivityTally
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.seeing import BLIND, Sight
from saegis_server.engine.torch.step import SMALLEST, Extent
from saegis_server.engine.torch.tally import Tally
from saegis_server.engine.torch.text import TextStream
from saegis_server.engine.torch.token_readings import PromptReadings, TokenReadings
from saegis_server.steering.site import Site


class RowCounts(NamedTuple):
    """The largest number of rows of each kind that a program has at any site, and what its conditions
    have.
    """

    edits: int
    rules: int
    held: int
    watches: int
    guards: int
    groups: int = 0
    observed: int = 0
    comparisons: int = 0
    gates: int = 0

    @property
    def padded(self) -> "RowCounts":
        """At least as many as a step reads."""
        return RowCounts(*(max(SMALLEST, count) for count in self))

    @property
    def at_site(self) -> tuple[int, int, int, int, int]:
        """Those of a site, in the order of TableView."""
        return self.edits, self.rules, self.held, self.watches, self.guards

    @property
    def steer(self) -> bool:
        """Whether any of them may change an activation."""
        return max(self.edits, self.rules, self.held) > 0

    @classmethod
    def of(cls, admitted: AdmittedProgram) -> "RowCounts":
        """Count the rows of a program."""
        sites, compiled = admitted.rows.values(), admitted.compiled
        conditions = (0, 0) if compiled is None else (compiled.comparisons, compiled.gates)
        return cls(
            max((len(site.edits) for site in sites), default=0),
            max((len(site.rules) for site in sites), default=0),
            max((site.held for site in sites), default=0),
            max((len(site.watches) for site in sites), default=0),
            max((len(site.guards) for site in sites), default=0),
            0,
            0,
            *conditions,
        )


class Running:
    """A request in flight: its sequences, its events, and what was done to it so far."""

    def __init__(
        self,
        request: GenerationRequest,
        admitted: AdmittedProgram,
        seed: int,
        sink: Sink,
        guard: RequestGuard | None = None,
        unmoved: int = 0,
        sight: Sight = BLIND,
    ) -> None:
        """`guard` is None where nothing is to be judged; `unmoved`: how
        many of the prompt's first tokens no row moves; `sight`: its pictures."""
        program = admitted.rows
        self.request, self.admitted, self.seed, self.sink, self.guard = request, admitted, seed, sink, guard
        self.program, self.unmoved, self.sight = program, unmoved, sight
        self.rows = RowCounts.of(admitted)._replace(groups=len(request.groups))
        self.readings = TokenReadings(request, program, unmoved)
        self.events: list[Event] = []
        self.sequences: list[Sequence] = []
        self.left = request.sampling.n
        self._told: Counter[int] = Counter()
        self._prompt_told = False
        self.tally = Tally(admitted.digest, program, unmoved)
        self.activity = ActivityTally()
        self.observed = ActivityTally()
        self.as_firing: Callable[[Tensor], Mapping[tuple[Site, str], Firing]] | None = None
        self.submitted = time.monotonic()
        self.began: float | None = None
        self.first_token: float | None = None
        self.closed = False
        self._error: EngineError | None = None

    @property
    def expired(self) -> bool:
        """Whether its deadline has passed."""
        return self.request.deadline is not None and time.monotonic() >= self.request.deadline

    @property
    def reads_prompt(self) -> bool:
        """Whether what is read at the prompt's tokens is still to be told."""
        return self.request.readouts.prompt and not self._prompt_told

    def tell(self, delta: Delta) -> None:
        """Tell new text and tokens, and count them; first of all what was read of the prompt."""
        if self.reads_prompt:
            self._prompt_told = True
            self.events.append(self.sequences[delta.index].prompt_readings.told())
            for sequence in self.sequences:
                sequence.prompt_readings.clear()
        self._told[delta.index] += len(delta.tokens)
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.events.append(delta)

    def fail(self, error: EngineError) -> None:
        """Let it end with an error, once all its sequences are finished."""
        self._error = self._error or error

    def close(self) -> None:
        """End it, all its sequences being finished and what was done to them added up."""
        if self.closed:
            return
        self.closed = True
        self.sight.forget()
        now = time.monotonic()
        began = self.began or now
        first = self.first_token or now
        usage = Usage(
            prompt_tokens=len(self.request.prompt),
            completion_tokens=self._told.total(),
            cached_tokens=0,
            steered_tokens=self.tally.steered_tokens,
        )
        timings = Timings(began - self.submitted, first - began, now - first)
        reasons = tuple(sequence.reason for sequence in self.sequences)
        tokens = tuple(self._told[sequence.index] for sequence in self.sequences)
        read = max((sequence.read for sequence in self.sequences), default=0)
        receipt, observed = self._receipt(), self.observed.result()
        firing = {} if observed is None or self.as_firing is None else self.as_firing(observed)
        done = RequestFinished(usage, receipt, timings, reasons, tokens, read, firing)
        self.events.append(done if self._error is None else RequestFailed(self._error, done))

    def _receipt(self) -> Receipt:
        in_force = self.program if self.guard is None else self.guard.came_in_force
        counts = self.activity.result()
        pairs = [(0, 0)] * len(self.request.groups) if counts is None else counts.tolist()
        acted = tuple(Acted(*map(int, pair)) for pair in pairs)
        receipt = replace(self.tally.receipt(in_force), acted=acted)
        return receipt if self.guard is None else self.guard.complete(receipt)


@dataclass(eq=False)
class Sequence:
    """One text of a request. Its tokens lie in the slot `slot` while it runs.

    stops: the tokens that end it; ends: those of them that are the model's own. read: how many tokens of its
    prompt its slot holds. held: what will be told once enough tokens have been judged, and `closing`, how it
    ends then. prompt_counts, prompt_activity, prompt_observed: what was counted at its prompt, where others
    have the same one. prompt_readings: what was read at the prompt's tokens, where that is to be told. rows:
    how many its program has.
    """

    running: Running
    index: int
    stops: frozenset[int]
    ends: frozenset[int]
    limit: int
    text: TextStream
    slot: int = -1
    read: int = 0
    generated: int = 0
    last_token: int = -1
    reason: FinishReason | None = field(default=None)
    finished: bool = field(default=False)
    loaded: bool = field(default=False)
    held: deque[Delta] = field(default_factory=deque)
    prompt_counts: list[list[float]] | None = None
    prompt_activity: Tensor | None = None
    prompt_observed: Tensor | None = None
    prompt_readings: PromptReadings = field(init=False)
    closing: SequenceFinished | None = None
    rows: RowCounts = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.running.rows
        self.prompt_readings = PromptReadings(self.running.readings)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.running.request.prompt

    @property
    def samples(self) -> bool:
        """Whether its tokens are more than the likeliest ones, so that the sampler has to run."""
        return not self.running.request.sampling.is_plain_greedy

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.running.request.tenant

    @property
    def principal(self) -> str:
        """Who of the tenant's asked for it."""
        return self.running.request.principal

    @property
    def caller(self) -> tuple[str, str]:
        """Its tenant and its principal."""
        return self.tenant, self.principal

    @property
    def length(self) -> int:
        """How many tokens its slot holds, the one about to be fed included."""
        return self.read + max(self.generated - 1, 0)

    @property
    def answer_start(self) -> int:
        """Where the answer begins: what the request gives of it belongs to the prompt's tokens."""
        return self.running.request.answer_start

    @property
    def seed(self) -> int:
        """Its own seed: the request's for the first one, for the others one made from it and their index, so
        that they do not meet those of the next seed."""
        if self.index == 0:
            return self.running.seed
        of_both = f"{self.running.seed} {self.index}".encode()
        return int.from_bytes(hashlib.blake2b(of_both, digest_size=8).digest())

    def take(
        self,
        token: int,
        logprobs: Tensor | None,
        watched: list[list[list[float]]] | None,
        moves: tuple[float, ...] = (),
    ) -> None:
        """Add a generated token; finishes the sequence if it ends here.

        logprobs: float32 [V] of the model's distribution; watched: [sites][watches][before, after]; moves: of
        the sites in `TokenReadings.moving`, all at the position from which the token was predicted. By now
        every token before this one has been judged. Where tokens are held back, those are told behind which
        enough have been; the last ones are told in a step of their own, whose token is nobody's.
        """
        self.generated, self.last_token = self.generated + 1, token
        if self.closing is not None:
            return self._close(self.closing)
        output = self._output(token, logprobs, watched, moves)
        text, ending = self._text_with(token)
        self.held.append(Delta(self.index, text, (output,)))
        guard = self.running.guard
        hold_back = 0 if guard is None else guard.hold_back
        if ending is not None and (hold_back == 0 or ending.stop_token in self.ends):
            return self._close(ending)
        self.closing = ending
        self._tell(hold_back)
        return None

    def _text_with(self, token: int) -> tuple[str, SequenceFinished | None]:
        """The text that is certain with a token, and how the sequence ends with it."""
        sampling = self.running.request.sampling
        if token in self.stops and self.generated > sampling.min_tokens:
            ended = SequenceFinished(self.index, FinishReason.STOP, stop_token=token)
            return self.text.finish(may_stop=False), ended
        may_stop = self.generated >= sampling.min_tokens
        text = self.text.push(token, may_stop)
        ending: SequenceFinished | None = None
        if self.generated >= self.limit:
            text += self.text.finish(may_stop)
            ending = SequenceFinished(self.index, FinishReason.LENGTH)
        if (matched := self.text.matched) is not None:
            ending = SequenceFinished(self.index, FinishReason.STOP, stop_string=matched)
        return text, ending

    def _tell(self, kept: int) -> None:
        """Tell what is held but for the last `kept` tokens."""
        while len(self.held) > kept:
            self.running.tell(self.held.popleft())

    def finish(self, reason: FinishReason) -> None:
        """End the sequence, with what is held untold; it keeps its slot until the engine takes it out.

        Nor is text let out that was held back where a condition ends it; what else ends it loses none.
        """
        if not self.finished:
            loses = reason is FinishReason.CONTENT_FILTER or self.held
            if not loses and (text := self.text.finish(may_stop=False)):
                self.running.tell(Delta(self.index, text, ()))
            self.held.clear()
            self._close(SequenceFinished(self.index, reason))

    def _close(self, ending: SequenceFinished) -> None:
        """End the sequence, all of which that is still held is told."""
        self._tell(0)
        self.finished, self.reason = True, ending.reason
        self.running.events.append(ending)

    def _output(
        self,
        token: int,
        logprobs: Tensor | None,
        watched: list[list[list[float]]] | None,
        moves: tuple[float, ...],
    ) -> TokenOutput:
        wanted = self.running.request.sampling.logprobs
        readings: tuple[Watched, ...] = ()
        if watched is not None:
            readings = self.running.readings.watched(watched, self.length - 1)
        if wanted is None or logprobs is None:
            return TokenOutput(token, watched=readings, moves=moves)
        top = logprobs.topk(wanted) if wanted else None
        alternatives = (
            () if top is None else tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        )
        return TokenOutput(token, float(logprobs[token]), alternatives, readings, moves)


def extent_of(batch: int, length: int, sequences: list[Sequence], observed: int = 0) -> Extent:
    """How much a step of some sequences reads: `batch` rows, `length` tokens, as many rows as they have.

    observed: how many features are observed at a site.
    """
    kinds = zip(*{sequence.rows for sequence in sequences}, strict=True)
    extent = Extent(max(batch, SMALLEST), max(length, SMALLEST), *(max(SMALLEST, *kind) for kind in kinds))
    return extent._replace(observed=max(SMALLEST, observed))
