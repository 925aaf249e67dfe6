"""Sides: engines in processes of their own, each made once and measured when it is its turn.

So none has another's threads, of which two teams on the same cores hinder each other, or what vLLM changes in
a process that it runs in.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from saegis_lab.bench.loads import (
    NEW_TOKENS,
    answer_all,
    no_tokenizer,
    programs,
    prompts,
    tokens_per_second,
    warm_step,
)
from saegis_lab.bench.plain_vllm import PlainVllm
from saegis_lab.bench.run import CONCURRENT, MANY, WIDTHS, in_own_thread
from saegis_lab.bench.subjects import Subject, random_llama, random_sae
from saegis_server.engine.api import Event, Limits, RequestFinished, SamplingParams
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.vllm.engine import VllmEngine
from saegis_server.engine.vllm.served import serve_in_vllm
from saegis_server.steering.program import SteeringProgram
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity

#: How long a text may be in vLLM, in tokens: the prefix that is shared, and what follows it.
LENGTH = 1023
#: The tokens that requests share, and those that each has of its own behind them.
SHARED_TOKENS, OWN_TOKENS = 1000, 8


@dataclass(frozen=True)
class Load:
    """So many requests at once, under `different` programs in turn, or none, of an SAE of `features`."""

    requests: int
    different: int = 0
    features: int = WIDTHS[1]


class FirstTokens(NamedTuple):
    """Of requests one after the other: milliseconds to the first token, in the mean, and the tokens of all
    their prompts that were shared, and that there are."""

    wait: float
    cached: int
    tokens: int


class Measured(Protocol):
    """An engine that is measured, in its own process."""

    def tokens_per_second(self, load: Load) -> float:
        """Generated tokens a second for requests that all come at once; the time includes the prompts."""


class Side:
    """An engine in a process of its own, until the block ends."""

    def __init__(self, make: Callable[[], Measured]) -> None:
        """`make` is called there; what it raises is raised here."""
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        try:
            self._process.submit(_make, make).result()
        except BaseException:
            self._process.shutdown()
            raise

    def tokens_per_second(self, load: Load) -> float:
        """Measure it once."""
        return self._process.submit(_measure, load).result()

    def first_tokens(self, different: int) -> FirstTokens:
        """How long the first tokens of requests that share a prefix take, under so many programs."""
        return self._process.submit(_first_tokens, different).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shutdown()


#: The one engine of a side's process.
_made: list[Measured] = []


def _make(make: Callable[[], Measured]) -> None:
    _made.append(in_own_thread(make))


def _measure(load: Load) -> float:
    # Whoever computes has a team of threads for as long as it lives, and a second team hinders the engine's.
    in_own_thread(lambda: _asked(load))
    return in_own_thread(lambda: _made[0].tokens_per_second(load))


def _first_tokens(different: int) -> FirstTokens:
    side = _made[0]
    if not isinstance(side, SteeredVllm):
        raise TypeError("only vLLM with steering in it is asked for its first tokens")
    return in_own_thread(lambda: side.first_tokens(different))


@cache
def _asked(load: Load) -> tuple[list[list[int]], list[SteeringProgram] | None]:
    """The prompts and the programs of a load, made once, so that none are made while it is timed."""
    subject = random_llama()
    asked = prompts(subject, load.requests)
    if not load.different:
        return asked, None
    sae = random_sae(subject.width, load.features)
    return asked, programs(subject, sae, load.different, load.requests)


class Plain:
    """vLLM alone; see `PlainVllm`."""

    def __init__(self, compiled: bool = False) -> None:
        self._vllm = PlainVllm(compiled)

    def tokens_per_second(self, load: Load) -> float:
        """Measure it once. Raises ValueError for a load with programs."""
        if load.different:
            raise ValueError("vLLM alone steers nothing")
        return self._vllm.tokens_per_second(_asked(load)[0])


class Embedded:
    """The embedded engine, compiled, with its weights packed."""

    def __init__(self) -> None:
        subject = random_llama()
        self._step = warm_step(subject, (subject.site,), MANY, lambda *_: None)

    def tokens_per_second(self, load: Load) -> float:
        """Measure it once."""
        return tokens_per_second(self._step, *_asked(load))


class SteeredVllm:
    """vLLM as `saegis serve --engine vllm` runs it."""

    def __init__(self, compiled: bool = False) -> None:
        subject = random_llama()
        self._served = serve_in_vllm(
            _loaded(subject),
            {subject.site: frozenset({Norm.NONE})},
            Wishes(count=MANY, length=LENGTH),
            Capacity(),
            lambda *_: None,
            compiled=compiled,
        )
        self._served.prove(lambda *_: None)
        self._served.keeps_core = True

    def _engine(self) -> VllmEngine:
        """An engine that knows no prefix."""
        self._served.core.forget_prefixes()
        return VllmEngine(self._served, no_tokenizer(), (), MANY, Limits())

    def tokens_per_second(self, load: Load) -> float:
        """Measure it once."""
        asked, steering = _asked(load)
        took = answer_all(self._engine(), asked, steering)
        return len(asked) * NEW_TOKENS / took

    def first_tokens(self, different: int) -> FirstTokens:
        """How long CONCURRENT requests wait for their first tokens, one after the other."""
        _, steering = _asked(Load(CONCURRENT, different))
        asked, engine = prefixed(), self._engine()
        ended: list[RequestFinished] = []

        def told(events: list[Event]) -> None:
            if isinstance(last := events[-1], RequestFinished):
                ended.append(last)

        one = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        took = answer_all(engine, asked, steering, sampling=one, told=told, in_turn=True)
        cached = sum(done.usage.cached_tokens for done in ended)
        return FirstTokens(1000.0 * took / len(asked), cached, sum(map(len, asked)))


def prefixed() -> list[list[int]]:
    """CONCURRENT prompts that begin with the same SHARED_TOKENS tokens."""
    subject = random_llama()
    texts = prompts(subject, CONCURRENT)
    shared = [token for text in prompts(subject, 1 + SHARED_TOKENS // len(texts[0])) for token in text]
    return [shared[:SHARED_TOKENS] + text[-OWN_TOKENS:] for text in texts]


def _loaded(subject: Subject) -> LoadedModel:
    model = subject.make()
    return LoadedModel(subject.name, model, no_tokenizer(), "", (), model.config.max_position_embeddings)
