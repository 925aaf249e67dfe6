"""Readings: texts that vLLM reads and does not write on: what is captured of them, and how likely they are.

They run in slots of their own beside the sequences, one job at a time, each of at most two texts.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import (
    Closing,
    EngineError,
    NonFiniteLogitsError,
    Reaction,
    RequestFinished,
    SamplingParams,
    Score,
    SteeringDivergedError,
)
from saegis_server.engine.counts import Acted, RowGroup
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.engine.torch.conditions import Outcome
from saegis_server.engine.torch.jobs import Job
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.score import Comparison, closing, compare
from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.torch.tally import Tally
from saegis_server.engine.vllm.core import Core
from saegis_server.engine.vllm.orders import Books, Order, Told, Wanted
from saegis_server.steering.site import Site

#: How many texts are read at once beside the sequences.
APART = 2
_GREEDY = SamplingParams(temperature=0.0)
_NAMES = itertools.count()


class Reader:
    """The texts that are read, by the ids that they have in vLLM."""

    def __init__(self, core: Core, first_slot: int) -> None:
        """Their slots are APART ones from `first_slot` on."""
        self.core, self._first = core, first_slot
        self._told: dict[str, deque[Told]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def take(self, told: Told) -> None:
        """Hand on what a step gave, if it is of a text that is still read."""
        if (queue := self._told.get(told.request_id)) is not None:
            queue.append(told)

    def open(self, place: int, tokens: Sequence[int], order: Order) -> tuple[str, deque[Told]]:
        """Begin to read a text in one of the slots; what each step gives of it comes in the queue."""
        name = f"reading-{next(_NAMES)}"
        queue = self._told[name] = deque[Told]()
        order = replace(order, slot=self._first + place)
        self.core.add(name, tokens, _GREEDY, order, name, reads_cache=False)
        return name, queue

    def again(self, name: str, tokens: Sequence[int]) -> tuple[str, deque[Told]]:
        """Read a text again from its start, with what holds now in force."""
        other = f"reading-{next(_NAMES)}"
        del self._told[name]
        queue = self._told[other] = deque[Told]()
        self.core.add_again(name, other, tokens, _GREEDY, other)
        return other, queue

    def books(self, place: int) -> Books:
        """What was counted for the text in one of the slots."""
        return self.core.books(self._first + place)

    def close(self, name: str) -> None:
        """Read a text no more."""
        if self._told.pop(name, None) is not None:
            self.core.drop(name)


def captured(reader: Reader, tokens: Sequence[int], vocabulary: int) -> Job[dict[Site, Tensor]]:
    """The clean activations [T, d] of a text at every site, on the CPU.

    Raises IndexError for a token that a vocabulary of so many does not have.
    """
    if beyond := [token for token in tokens if not 0 <= token < vocabulary]:
        raise IndexError(f"{beyond[0]} is not a token id below {vocabulary}")
    none = RowCounts(0, 0, 0, 0, 0)
    order = Order(0, {}, none, len(tokens), wanted=Wanted(clean=True))
    name, queue = reader.open(0, tokens, order)
    parts: list[dict[Site, Tensor]] = []
    try:
        read = 0
        while read < len(tokens):
            yield
            while queue and read < len(tokens):
                told = queue.popleft()
                if told.clean is None:
                    raise RuntimeError("a step gave no activations")
                parts.append(told.clean)
                read = told.start + told.length
    finally:
        reader.close(name)
    return {site: torch.cat([part[site] for part in parts]).cpu() for site in parts[0]}


class Reading:
    """One of the readings of a text of T tokens, under a program and its conditions."""

    def __init__(
        self,
        reader: Reader,
        place: int,
        tokens: Sequence[int],
        admitted: AdmittedProgram,
        guard: RequestGuard | None,
        unmoved: int = 0,
        groups: tuple[RowGroup, ...] = (),
        prefilled: int = 0,
    ) -> None:
        """`place`: which of the slots; the rest as of `engine.torch.score.Reading`."""
        self._reader, self._place, self._tokens = reader, place, list(tokens)
        self._admitted, self._guard, self._unmoved = admitted, guard, unmoved
        self._groups, self._answer_start = groups, len(self._tokens) - prefilled
        self._name, self._queue = "", deque[Told]()
        self._parts: deque[Tensor] = deque()
        self._books: Books | None = None
        self.read, self.changed = 0, False

    @property
    def whole(self) -> bool:
        """Whether all of the text has been read."""
        return self.read == len(self._tokens)

    def begin(self) -> None:
        """Read the text from its start: the first time, or again with what holds now in force."""
        self._parts.clear()
        self._books, self.read = None, 0
        if self._name and self._admitted.compiled is not None:
            self._name, self._queue = self._reader.again(self._name, self._tokens)
            self.changed = False
            return
        self._reader.close(self._name)
        counts = RowCounts.of(self._admitted)._replace(groups=len(self._groups))
        order = Order(
            0,
            self._admitted.rows,
            counts,
            self._answer_start,
            self._admitted.compiled,
            self._groups,
            self._unmoved,
            0 if self._guard is None else self._guard.unread,
            wanted=Wanted(logits=True),
        )
        self._name, self._queue = self._reader.open(self._place, self._tokens, order)
        self.changed = False

    def advance(self, error: type[EngineError], what: str) -> None:
        """Take in what the steps gave since.

        Raises `error`, saying `what`, where logits are not finite; NonFiniteLogitsError where what a
        condition looked at is no number; and RefusedByPolicyError where one refuses the text, or would stop
        an answer.
        """
        while self._queue and not self.whole:
            told = self._queue.popleft()
            if told.logits is None:
                raise RuntimeError("a step gave no logits")
            if not bool(torch.isfinite(told.logits).all()):
                end = told.start + told.length - 1
                raise error(f"{what} in tokens {told.start} to {end}")
            self.read = told.start + told.length
            self._parts.append(told.logits)
            self._require_allowed(told)
            if Outcome(told.outcome) is Outcome.AGAIN:
                self.changed = True
                return
            if self.read == len(self._tokens):
                self._keep_books()

    def _require_allowed(self, told: Told) -> None:
        if Outcome(told.outcome) is Outcome.UNREADABLE:
            raise NonFiniteLogitsError(
                "a guard's reading is no finite number, so its conditions cannot be judged"
            )
        if Outcome(told.outcome) is Outcome.ENDS and self._guard is not None:
            refusal = self._guard.refusal(told.holds or [], Reaction.REFUSE, Reaction.STOP)
            if refusal is not None:
                raise refusal

    def take(self, count: int) -> Tensor:
        """The next logits [count, V], of those that `ready` says are there."""
        parts: list[Tensor] = []
        while count > 0:
            part = self._parts.popleft()
            parts.append(part[:count])
            if len(part) > count:
                self._parts.appendleft(part[count:])
            count -= len(parts[-1])
        return torch.cat(parts)

    @property
    def ready(self) -> int:
        """How many logits wait to be taken."""
        return sum(map(len, self._parts))

    def _keep_books(self) -> None:
        """Keep what was counted, and read no further for now."""
        self._books = self._reader.books(self._place)
        self._reader.core.halt(self._name)

    def close(self) -> None:
        """Read no more."""
        if self._name and self._books is None:
            self._keep_books()
        self._reader.close(self._name)
        self._name = ""

    def receipt(self, sites: Sequence[Site]) -> tuple[Receipt, int]:
        """What was done in it, and how many tokens were moved at any site. To be called once."""
        tally = Tally(self._admitted.digest, self._admitted.rows, self._unmoved)
        acted = tuple(Acted(0, 0) for _ in self._groups)
        if self._books is not None:
            tally.add(sites, self._books.counts)
            acted = tuple(Acted(*map(int, pair)) for pair in self._books.activity.tolist())
        if self._guard is None:
            return replace(tally.receipt(self._admitted.rows), acted=acted), tally.steered_tokens
        if self._books is not None:
            self._guard.add(self._books.conditions, self._answer_start)
        receipt = replace(tally.receipt(self._guard.came_in_force), acted=acted)
        return self._guard.complete(receipt), tally.steered_tokens


class Scoring:
    """A text that is scored: read plainly and as steered, side by side, each prediction compared."""

    def __init__(
        self,
        tokens: Sequence[int],
        steered: Reading,
        plain: Reading,
        sites: Sequence[Site],
        on_end: Callable[[Closing], None] | None = None,
    ) -> None:
        """`on_end` hears, before the result is told, how it ended; it runs on the engine's thread."""
        self._tokens, self._steered, self._plain = list(tokens), steered, plain
        self._sites, self._on_end = sites, on_end
        self._submitted = time.monotonic()
        self._began: float | None = None
        self._done: RequestFinished | None = None
        self._read = 0

    def job(self) -> Job[Score]:
        """Read the text; raises as `engine.torch.score.Scoring.job` does."""
        self._began = time.monotonic()
        try:
            while (whole := (yield from self._reading())) is None:
                pass
        finally:
            self._plain.close()
            self._steered.close()
        done = self._finished()
        return Score(
            logprobs=tuple(whole.logprobs.tolist()),
            plain_logprobs=tuple(whole.plain_logprobs.tolist()),
            divergences=tuple(whole.divergences.tolist()),
            receipt=done.receipt,
            timings=done.timings,
        )

    def _reading(self) -> Job[Comparison | None]:
        """Read the whole text under the rows that are in force now; None where others have come in force."""
        self._plain.begin()
        self._steered.begin()
        parts: list[Comparison] = []
        at = 0
        while not (self._plain.whole and self._steered.whole):
            yield
            self._plain.advance(NonFiniteLogitsError, "the model's logits are not finite")
            beyond = "the request's edits drove the activations beyond all bounds"
            self._steered.advance(SteeringDivergedError, beyond)
            self._read = max(self._read, self._steered.read)
            if self._plain.changed or self._steered.changed:
                return None
            # After the last token nothing comes.
            count = min(self._plain.ready, self._steered.ready, len(self._tokens) - 1 - at)
            if count > 0:
                following = torch.tensor(self._tokens[at + 1 : at + 1 + count])
                steered, plain = self._steered.take(count), self._plain.take(count)
                parts.append(compare(steered, plain, following.to(steered.device)))
                at += count
        return Comparison.join(parts)

    def ended(self, error: BaseException | None) -> None:
        """It has ended: with its result, with an error, or, if it is a CancelledError, unwanted."""
        if self._on_end is not None:
            self._on_end(closing(self._finished(), error))

    def _finished(self) -> RequestFinished:
        """What was done so far."""
        if self._done is None:
            receipt, steered = self._steered.receipt(self._sites)
            now = time.monotonic()
            began = now if self._began is None else self._began
            usage = Usage(self._read, 0, 0, steered)
            self._done = RequestFinished(usage, receipt, Timings(began - self._submitted, now - began, 0.0))
        return self._done
