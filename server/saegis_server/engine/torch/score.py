"""Score: how likely a text is, as steered and under a baseline, and how far the two differ."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.engine.admission import AdmittedProgram
from saegis_server.engine.api import (
    Closing,
    EngineError,
    FinishReason,
    NonFiniteLogitsError,
    Reaction,
    RequestFailed,
    RequestFinished,
    Score,
    SteeringDivergedError,
)
from saegis_server.engine.counts import Acted, RowGroup
from saegis_server.engine.receipts import Receipt, Timings, Usage
from saegis_server.engine.torch.conditions import ConditionResult, Outcome
from saegis_server.engine.torch.context import KVCache
from saegis_server.engine.torch.jobs import Job
from saegis_server.engine.torch.request_guard import RequestGuard
from saegis_server.engine.torch.seeing import BLIND, Sight
from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.torch.slots import TextTables
from saegis_server.engine.torch.step import ReadOutput, Step
from saegis_server.engine.torch.tally import Tally

#: How many positions are compared at once: with 256 000 tokens in the vocabulary, 33 MB for each of some
#: five float32 tensors.
POSITIONS_AT_ONCE = 32


def closing(done: RequestFinished, error: BaseException | None) -> RequestFinished | RequestFailed:
    """How a text that was scored has ended, with what was done of it: with its result, with an error, or, if
    it is a CancelledError, unwanted."""
    if isinstance(error, EngineError):
        return RequestFailed(error, done)
    if isinstance(error, CancelledError):
        return replace(done, reasons=(FinishReason.ABORT,))
    if error is not None:
        return RequestFailed(EngineError(f"the text could not be read: {error}"), done)
    return done


class Comparison(NamedTuple):
    """Q predictions compared: log probabilities of what followed, steered and plain, and divergences.

    All float32 [Q], natural logarithms.
    """

    logprobs: Tensor
    plain_logprobs: Tensor
    divergences: Tensor

    @classmethod
    def join(cls, parts: "Sequence[Comparison]") -> "Comparison":
        """Several of them as one, in their order."""
        return cls(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


@torch.inference_mode()
def compare(steered: Tensor, plain: Tensor, following: Tensor) -> Comparison:
    """Compare two readings by their logits [Q, V], any float dtype; following int64 [Q] is what came.

    The divergence is KL(p ‖ q) = Σ p·(log p − log q) over the vocabulary, p plain and q steered, in float32.
    """
    slices = [slice(at, at + POSITIONS_AT_ONCE) for at in range(0, len(following), POSITIONS_AT_ONCE)]
    return Comparison.join([_compare(steered[part], plain[part], following[part]) for part in slices])


def _compare(steered: Tensor, plain: Tensor, following: Tensor) -> Comparison:
    log_q = torch.log_softmax(steered.to(torch.float32), -1)
    log_p = torch.log_softmax(plain.to(torch.float32), -1)
    p = log_p.exp()
    # What the model never says counts for nothing, even where steering makes it infinitely unlikely.
    terms = torch.where(p > 0.0, p * (log_p - log_q), 0.0)
    chosen = following[:, None]
    return Comparison(
        log_q.gather(-1, chosen)[:, 0],
        log_p.gather(-1, chosen)[:, 0],
        terms.sum(-1).clamp(min=0.0),  # it is never negative, but a rounded sum may be
    )


class Reading:
    """One of the readings of a text of T tokens: under a program and its conditions, with a cache of its
    own.
    """

    def __init__(
        self,
        step: Step,
        admitted: AdmittedProgram,
        guard: RequestGuard | None,
        length: int,
        unmoved: int = 0,
        groups: tuple[RowGroup, ...] = (),
        prefilled: int = 0,
        sight: Sight = BLIND,
    ) -> None:
        """`unmoved`: how many of the text's first tokens no row moves. Without a guard nothing is judged.
        groups: of its rows, those that are counted together. prefilled: how many of its last tokens are of an
        answer. sight: its pictures."""
        self._groups, self._acted = groups, torch.zeros(len(groups), 2)
        self._step, self._admitted, self._guard, self._length = step, admitted, guard, length
        self._answer_start = length - prefilled
        self._unmoved, self._outcome, self._sight = unmoved, Outcome.GOES_ON, sight
        self._tally = Tally(admitted.digest, admitted.rows, unmoved)
        self._cache: KVCache | None = None
        self._tables: TextTables | None = None

    @torch.inference_mode()
    def begin(self) -> None:
        """Read the text from its beginning, with what held at its end when it was read before in force."""
        slots, rows = self._step.slots, RowCounts.of(self._admitted).padded
        self._cache = slots.cache.apart(self._length)
        if self._tables is None:
            self._tables = slots.tables_of(
                self._admitted.rows,
                self._admitted.compiled,
                rows.at_site,
                rows.comparisons,
                rows.gates,
                self._groups,
            )
        elif self._admitted.compiled is not None:
            self._tables.state.read_again(0, self._admitted.compiled)
        self._tally = Tally(self._admitted.digest, self._admitted.rows, self._unmoved)
        self._acted = torch.zeros(len(self._groups), 2)

    def read(self, tokens: Sequence[int], start: int) -> ReadOutput:
        """Read the next tokens, from place `start` on."""
        if self._cache is None or self._tables is None:
            raise RuntimeError("a reading goes on that has not begun")
        unread = 0 if self._guard is None else self._guard.unread
        seen = self._sight.within(start, start + len(tokens))
        reading = self._step.read(
            list(tokens), start, self._cache, self._tables, self._answer_start, self._unmoved, unread, seen
        )
        self._tables, self._outcome = reading.tables, reading.outcome
        self._tally.add(self._step.sites, reading.counts.tolist())
        if self._groups and self._step.sites:
            self._acted = self._acted + reading.acted.cpu()
        return reading

    def require_allowed(self) -> None:
        """After a chunk, raise NonFiniteLogitsError where what a condition looked at is no number, and
        RefusedByPolicyError where one refuses the text, or would stop an answer."""
        if self._outcome is Outcome.UNREADABLE:
            raise NonFiniteLogitsError(
                "a guard's reading is no finite number, so its conditions cannot be judged"
            )
        if self._outcome is Outcome.ENDS and self._guard is not None and self._tables is not None:
            holds = self._tables.state.holds[0].tolist()
            if (refusal := self._guard.refusal(holds, Reaction.REFUSE, Reaction.STOP)) is not None:
                raise refusal

    @property
    def changed(self) -> bool:
        """After a chunk, whether further rows are in force now, so that the text is to be read again."""
        return self._outcome is Outcome.AGAIN

    def receipt(self) -> Receipt:
        """What was done in it. To be called once."""
        acted = tuple(Acted(*map(int, pair)) for pair in self._acted.tolist())
        if self._guard is None:
            return replace(self._tally.receipt(self._admitted.rows), acted=acted)
        if self._tables is not None:
            result = ConditionResult.of(self._tables.state, self._tables.peaks, 0)
            self._guard.add(result, self._answer_start)
        receipt = self._tally.receipt(self._guard.came_in_force)
        return self._guard.complete(replace(receipt, acted=acted))

    @property
    def steered_tokens(self) -> int:
        """How many tokens were moved at any site."""
        return self._tally.steered_tokens


class Scoring:
    """A text that is scored a chunk at a time, as a prompt is read, each chunk plainly and as steered.

    Both readings have a cache of their own; the slots of running sequences are not touched. Where in one of
    them a condition comes to hold whose rows were not in force, the text is read again with them.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        steered: Reading,
        plain: Reading,
        chunk: int,
        on_end: Callable[[Closing], None] | None = None,
        prefilled: int = 0,
    ) -> None:
        """`chunk`: how many tokens are read at once. `on_end` hears, before the result is told, how it ended.

        It is told the usage and the receipt of the steered reading, and runs on the engine's thread.
        prefilled: how many of the tokens, at their end, are of an answer.
        """
        self._answer_start = len(tokens) - prefilled
        self._tokens, self._steered, self._plain, self._chunk = list(tokens), steered, plain, chunk
        self._on_end = on_end
        self._read_tokens = 0
        self._submitted = time.monotonic()
        self._began: float | None = None
        self._receipt: Receipt | None = None

    def job(self) -> Job[Score]:
        """Read the text, a piece for each chunk.

        Raises SteeringDivergedError or NonFiniteLogitsError where the logits of a reading are not finite, or
        what conditions look at; RefusedByPolicyError where one refuses the text or would stop an answer.
        """
        self._began = time.monotonic()
        while (whole := (yield from self._reading())) is None:
            yield
        done = self._done()
        return Score(
            logprobs=tuple(whole.logprobs.tolist()),
            plain_logprobs=tuple(whole.plain_logprobs.tolist()),
            divergences=tuple(whole.divergences.tolist()),
            receipt=done.receipt,
            timings=done.timings,
        )

    def ended(self, error: BaseException | None) -> None:
        """It has ended: with its result, with an error, or, if it is a CancelledError, unwanted."""
        if self._on_end is not None:
            self._on_end(closing(self._done(), error))

    def _done(self) -> RequestFinished:
        """What was done so far."""
        if self._receipt is None:
            self._receipt = self._steered.receipt()
        now = time.monotonic()
        began = now if self._began is None else self._began
        usage = Usage(self._read_tokens, 0, 0, self._steered.steered_tokens)
        return RequestFinished(usage, self._receipt, Timings(began - self._submitted, now - began, 0.0))

    def _reading(self) -> Job[Comparison | None]:
        """Read the whole text under the rows that are in force now; None where others have come in force, so
        that it is to be read again."""
        self._plain.begin()
        self._steered.begin()
        parts: list[Comparison] = []
        start, count = 0, len(self._tokens)
        while start < count:
            if start > 0:
                yield
            end = min(start + self._chunk, self._answer_start if start < self._answer_start else count)
            parts += self._read(start, end)
            if self._plain.changed or self._steered.changed:
                return None
            start = end
        return Comparison.join(parts)

    def _read(self, start: int, end: int) -> list[Comparison]:
        """Read a chunk both ways and compare; nothing to compare where it is the last token alone.

        What the rules refuse without the request's edits is refused, whatever the edits do about it.
        """
        tokens = self._tokens[start:end]
        following = self._tokens[start + 1 : start + 1 + len(tokens)]
        plain = self._plain.read(tokens, start)
        _require_finite(plain.logits, start, NonFiniteLogitsError, "the model's logits are not finite")
        steered = self._steered.read(tokens, start)
        beyond = "the request's edits drove the activations beyond all bounds"
        _require_finite(steered.logits, start, SteeringDivergedError, beyond)
        self._read_tokens = max(self._read_tokens, start + len(tokens))
        self._plain.require_allowed()
        self._steered.require_allowed()
        if not following:
            return []
        known = torch.tensor(following, device=steered.logits.device)
        return [compare(steered.logits[: len(known)], plain.logits[: len(known)], known)]


def _require_finite(
    logits: Tensor, start: int, error: type[NonFiniteLogitsError | SteeringDivergedError], what: str
) -> None:
    # Which token began it cannot be told: within a chunk, attention multiplies what comes later by zero, and
    # 0 · NaN is NaN.
    if not bool(torch.isfinite(logits).all()):
        raise error(f"{what} in tokens {start} to {start + len(logits) - 1}")
