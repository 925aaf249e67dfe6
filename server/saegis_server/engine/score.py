"""Score: how likely a text is under the model, as steered and as it is, and how far the two differ."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from saegis_server.engine.context import KVCache
from saegis_server.engine.jobs import Job
from saegis_server.engine.request_guard import RequestGuard
from saegis_server.engine.requests import NonFiniteLogitsError, Receipt, SteeringDivergedError, Timings
from saegis_server.engine.sequence import RowCounts
from saegis_server.engine.sites import Site
from saegis_server.engine.step import SMALLEST, Step
from saegis_server.engine.tally import Tally
from saegis_server.engine.text_verdict import TextVerdict
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.table import TableView

#: How many positions are compared at once: with 256 000 tokens in the vocabulary, 33 MB for each of some
#: five float32 tensors.
POSITIONS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Score:
    """How likely the tokens of a text of T tokens are; natural logarithms, T − 1 numbers in each tuple.

    Entry i is of token i + 1, given tokens 0 to i: its log probability as steered and as the model is, and
    KL(plain ‖ steered) of the two distributions in nats. The receipt is of the steered reading of all T.
    """

    logprobs: tuple[float, ...]
    plain_logprobs: tuple[float, ...]
    divergences: tuple[float, ...]
    receipt: Receipt
    timings: Timings


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


class Scoring:
    """A text that is scored a chunk at a time, as a prompt is read, each chunk plainly and as steered.

    Both readings have a cache of their own; the slots of running sequences are not touched. Where a condition
    comes to hold whose rows were not in force, the text is read again with them.
    """

    def __init__(
        self,
        step: Step,
        tokens: Sequence[int],
        program: SteeringProgram,
        rows: Mapping[Site, SiteProgram],
        chunk: int,
        guard: RequestGuard | None = None,
        unmoved: int = 0,
    ) -> None:
        """`rows` are the program's, by site; `chunk` is how many tokens are read at once; `unmoved`: how many
        of the text's first tokens no row moves."""
        self._step, self._tokens, self._program, self._chunk = step, list(tokens), program, chunk
        self._tally, self._unmoved = Tally(program, rows, unmoved), unmoved
        self._verdict = TextVerdict(guard, rows)
        self._submitted = time.monotonic()

    def job(self) -> Job[Score]:
        """Read the text, a piece for each chunk.

        Raises SteeringDivergedError or NonFiniteLogitsError where the logits of a reading are not finite, or
        what conditions look at; RefusedByPolicyError where one refuses the text or would stop an answer.
        """
        began = time.monotonic()
        whole = yield from self._reading()
        while self._verdict.changed():
            yield
            whole = yield from self._reading()
        return Score(
            logprobs=tuple(whole.logprobs.tolist()),
            plain_logprobs=tuple(whole.plain_logprobs.tolist()),
            divergences=tuple(whole.divergences.tolist()),
            receipt=self._verdict.complete(self._tally.receipt(self._verdict.rows)),
            timings=Timings(began - self._submitted, time.monotonic() - began, 0.0),
        )

    def _reading(self) -> Job[Comparison]:
        """Read the whole text under the rows that are in force now."""
        slots, count, rows = self._step.slots, len(self._tokens), self._verdict.rows
        plain, steered = slots.cache.apart(count), slots.cache.apart(count)
        room = (max(SMALLEST, number) for number in RowCounts.of(rows))
        views = slots.views(rows, *room)
        self._tally = Tally(self._program, rows, self._unmoved)
        parts: list[Comparison] = []
        for start in range(0, count, self._chunk):
            if start > 0:
                yield
            parts += self._read(start, plain, steered, views)
        return Comparison.join(parts)

    def _read(
        self, start: int, plain: KVCache, steered: KVCache, views: Mapping[Site, TableView]
    ) -> list[Comparison]:
        """Read a chunk both ways and compare; nothing to compare where it is the last token alone."""
        step, tokens = self._step, self._tokens[start : start + self._chunk]
        expected = step.read(tokens, start, plain).logits
        _require_finite(expected, start, NonFiniteLogitsError, "the model's logits are not finite")
        found = step.read(tokens, start, steered, views, self._unmoved)
        beyond = "the request's edits drove the activations beyond all bounds"
        _require_finite(found.logits, start, SteeringDivergedError, beyond)
        self._tally.add(step.sites, found.counts.tolist())
        following = self._tokens[start + 1 : start + 1 + len(tokens)]
        self._verdict.hear(found.read, start, last=len(following) < len(tokens))
        if not following:
            return []
        known = torch.tensor(following, device=step.device)
        return [compare(found.logits[: len(known)], expected[: len(known)], known)]


def _require_finite(
    logits: Tensor, start: int, error: type[NonFiniteLogitsError | SteeringDivergedError], what: str
) -> None:
    # Which token began it cannot be told: within a chunk, attention multiplies what comes later by zero, and
    # 0 · NaN is NaN.
    if not bool(torch.isfinite(logits).all()):
        raise error(f"{what} in tokens {start} to {start + len(logits) - 1}")
