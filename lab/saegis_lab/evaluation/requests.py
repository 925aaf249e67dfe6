"""The requests of an evaluation: answers, likelihoods and divergences, asked for side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from saegis_lab.evaluation.experiment import Decoding, Prompt

if TYPE_CHECKING:
    from saegis import ChatMessage, Client, Edit

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Called with the stage, how many of its requests have ended, and how many there are.
Progress = Callable[[str, int, int], None]

#: exp of more than this overflows; no text is so unlikely.
_LARGEST_EXPONENT = 700.0


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their start; at least one, since the first is not predicted."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return max(1, sum(1 for _ in same))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answered to a prompt.

    text: what the caller received. stopped: whether a rule of the operator's ended it. token_ids: its tokens.
    """

    prompt: Prompt
    text: str
    stopped: bool = False
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def messages(self) -> list[ChatMessage]:
        """The finished conversation."""
        return [*self.prompt.messages, {"role": "assistant", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Total:
    """A sum over tokens, in nats, and how many tokens it is over."""

    nats: float = 0.0
    tokens: int = 0

    @classmethod
    def pooled(cls, totals: Iterable[Total | None]) -> Total:
        """The sum over the totals that are not None."""
        there = [total for total in totals if total is not None]
        return cls(math.fsum(total.nats for total in there), sum(total.tokens for total in there))

    @property
    def mean(self) -> float | None:
        """Nats a token; None without tokens."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def perplexity(self) -> float | None:
        """exp of nats a token, where the nats are negative log probabilities; None without tokens."""
        return None if self.mean is None else math.exp(min(self.mean, _LARGEST_EXPONENT))


class Requests:
    """Asks one server, `concurrency` requests at a time, and reports the progress.

    A call that fails ends the work: waiting requests are cancelled, and the client's SaegisError is raised.
    """

    def __init__(
        self, client: Client, concurrency: int = 8, progress: Progress = lambda _stage, _done, _total: None
    ) -> None:
        """Raises ValueError for a concurrency below 1."""
        if concurrency < 1:
            raise ValueError(f"concurrency: must be at least 1, not {concurrency}")
        self._client = client
        self._concurrency = concurrency
        self._progress = progress
        self._model = client.model()

    @property
    def model_id(self) -> str:
        """The id of the served model."""
        return self._model.id

    def sae_id(self, named: str) -> str:
        """The id `named`, or where it is empty the id of the server's only SAE."""
        return self._model.saes[0].id if not named and len(self._model.saes) == 1 else named

    def answers(
        self, prompts: Sequence[Prompt], edits: Sequence[Edit], decoding: Decoding, stage: str
    ) -> list[Answer]:
        """Answers under `edits`, `decoding.samples` to each prompt, in the prompts' order.

        Each answer has a seed of its own, which does not depend on the edits.
        """
        import saegis

        numbered = list(enumerate(prompt for prompt in prompts for _ in range(decoding.samples)))

        def ask(item: tuple[int, Prompt]) -> Answer:
            number, prompt = item
            generation = self._client.generate(
                messages=prompt.messages,
                steering=edits,
                temperature=decoding.temperature,
                seed=decoding.seed + number,
                max_tokens=decoding.max_tokens,
            )
            stopped = generation.finish_reason == saegis.FinishReason.CONTENT_FILTER
            return Answer(prompt, generation.text, stopped, generation.token_ids)

        return self._side_by_side(ask, numbered, stage)

    def likelihoods(
        self, texts: Sequence[str], stage: str, cut: Sequence[bool] | None = None
    ) -> list[Total | None]:
        """The negative log probability of each text under the bare model, as an answer to an empty message.

        If the server has policies, they must allow unruled scores, as for `divergences`. With an empty
        message the prompt does not count, and the text stands where a chat model writes its answers; without
        one, even the model's own short replies would be unlikely. The tokens that end the answer count, but
        not where `cut` says that the answer had no end. None for an empty text.
        """
        silence: ChatMessage = {"role": "user", "content": ""}
        nothing: ChatMessage = {"role": "assistant", "content": ""}
        opening = self._client.tokenize(messages=[silence]).token_ids
        closed = self._client.score(messages=[silence, nothing], unruled=True).token_ids if cut else ()
        closing = closed[_shared(opening, closed) :] if cut else ()

        def weigh(item: tuple[str, bool]) -> Total | None:
            text, is_cut = item
            if not text:
                return None
            conversation: list[ChatMessage] = [silence, {"role": "assistant", "content": text}]
            score = self._client.score(messages=conversation, unruled=True)
            answered = score.plain_logprobs[_shared(opening, score.token_ids) - 1 :]
            if is_cut and closing and score.token_ids[-len(closing) :] == closing:
                answered = answered[: -len(closing)]
            return Total(-math.fsum(answered), len(answered))

        ended = [False] * len(texts) if cut is None else cut
        return self._side_by_side(weigh, list(zip(texts, ended, strict=True)), stage)

    def weighed(self, answers: Sequence[Answer], stage: str) -> list[tuple[Total, Total]]:
        """The negative log probability of each answer after its prompt, what ends it included: under the bare
        model, and under the operator's rules in force. Those must allow unruled scores and end no answer."""

        def weigh(answer: Answer) -> tuple[Total, Total]:
            opening = self._client.tokenize(messages=answer.prompt.messages).token_ids
            score = self._client.score(messages=answer.messages, unruled=True, as_answer=True)
            start = _shared(opening, score.token_ids) - 1
            plain, ruled = score.plain_logprobs[start:], score.logprobs[start:]
            return Total(-math.fsum(plain), len(plain)), Total(-math.fsum(ruled), len(ruled))

        return self._side_by_side(weigh, answers, stage)

    def divergences(self, answers: Sequence[Answer], edits: Sequence[Edit], stage: str) -> list[Total]:
        """KL(unsteered ‖ under `edits`) of each answered prompt, over each token but the first.

        Unsteered also means without the operator's rules. What acts on answers acts on the answer; rules that
        would end it must not be in force.
        """

        def compare(answer: Answer) -> Total:
            score = self._client.score(messages=answer.messages, steering=edits, unruled=True, as_answer=True)
            return Total(math.fsum(score.divergences), len(score.divergences))

        return self._side_by_side(compare, answers, stage)

    def _side_by_side(
        self, work: Callable[[Item], Result], items: Sequence[Item], stage: str
    ) -> list[Result]:
        """The results of `work` for the items, in order."""
        if not items:
            return []
        self._progress(stage, 0, len(items))
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                futures = [pool.submit(work, item) for item in items]
                for done, future in enumerate(as_completed(futures), start=1):
                    future.result()
                    self._progress(stage, done, len(items))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]
