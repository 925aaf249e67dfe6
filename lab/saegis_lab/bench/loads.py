"""Loads: the requests of the benchmark, and how fast the engine and Transformers answer them."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from saegis_lab.bench.subjects import Subject
from saegis_server.engine.api import (
    UNGUARDED,
    Engine,
    Event,
    GenerationRequest,
    Guard,
    Guarded,
    Progress,
    Reaction,
    RequestFailed,
    RequestFinished,
    SamplingParams,
    Sink,
)
from saegis_server.engine.counts import Dictionary, Observed
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.packing import Packing
from saegis_server.engine.torch.site_reading import edited
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.engine.torch.warmup import warm_up
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Literal, Scope
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, clamp, scale
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity


def generate(model: PreTrainedModel, prompts: list[list[int]]) -> float:
    """Generated tokens a second of Transformers' `generate`, greedy, all prompts in one static batch."""
    ids = torch.tensor(prompts, device=model.device)
    run: Any = model.generate
    start = time.perf_counter()
    output = run(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    whole = output.cpu()  # which waits for an accelerator
    elapsed = time.perf_counter() - start
    if whole.shape[1] != ids.shape[1] + NEW_TOKENS:
        raise RuntimeError(f"generate wrote {whole.shape[1] - ids.shape[1]} tokens instead of {NEW_TOKENS}")
    return len(prompts) * NEW_TOKENS / elapsed


def generate_with_hooks(
    model: PreTrainedModel, site: Site, sae: SparseAutoencoder, prompts: list[list[int]]
) -> float:
    """Tokens a second of `generate`, one request at a time, with a forward hook that runs the whole SAE.

    The hook encodes, clamps ROWS features, decodes, and adds the SAE's error back.
    """
    features = torch.arange(ROWS)

    def steer(x: Tensor) -> Tensor:
        f = sae.encode(x)
        error = x - sae.decode(f, x)
        f[..., features] = 0.5
        return sae.decode(f, x) + error

    with edited(model, site, steer):
        start = time.perf_counter()
        for prompt in prompts:
            generate(model, [prompt])
        return len(prompts) * NEW_TOKENS / (time.perf_counter() - start)


PROMPT_TOKENS, NEW_TOKENS = 64, 96
#: Rows of each steered request.
ROWS = 8
#: Readings of each guarded request, and its conditions on them.
READINGS, CONDITIONS = 32, 8
#: Features that are counted for metrics, and at one of how many steps all of them are.
COUNTED, USAGE_EVERY = 32, 16
_GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)


def prompts(subject: Subject, count: int) -> list[list[int]]:
    """Random prompts of token ids, the same at every call."""
    rng = torch.Generator().manual_seed(1)
    drawn: list[list[int]] = torch.randint(
        4, subject.vocabulary, (count, PROMPT_TOKENS), generator=rng
    ).tolist()
    return drawn


def programs(subject: Subject, sae: SparseAutoencoder, count: int, requests: int) -> list[SteeringProgram]:
    """A program for each of `requests` requests: `count` different ones of ROWS rows, in turn."""
    rng = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        features = torch.randperm(sae.features, generator=rng)[:ROWS].tolist()
        probes = [sae.probe(feature) for feature in features]
        edits = [clamp(probe, 0.5) if row % 2 else scale(probe, 0.5) for row, probe in enumerate(probes)]
        made.append(SteeringProgram({subject.site: SiteProgram(edits=tuple(edits))}))
    return [made[index % count] for index in range(requests)]


def guarded(
    subject: Subject, sae: SparseAutoencoder, requests: int
) -> tuple[list[SteeringProgram], list[Guard]]:
    """Programs and guards that steer nothing: READINGS features are read, with CONDITIONS conditions on them.

    The conditions cover every scope, join four readings each, and never hold: they only cost the reading.
    """
    rng = torch.Generator().manual_seed(3)
    features = torch.randperm(sae.features, generator=rng)[:READINGS].tolist()
    program = SteeringProgram(
        {subject.site: SiteProgram(guards=tuple(sae.probe(feature) for feature in features))}
    )
    reactions = (Reaction.STOP, Reaction.EDIT, Reaction.RECORD, Reaction.EDIT)
    rows = {subject.site: SiteProgram(rules=(clamp(sae.probe(features[0]), 0.0),))}
    conditions = []
    for index in range(CONDITIONS):
        first, *others = (Literal(4 * index + place, 1e6) for place in range(READINGS // CONDITIONS))
        expression = AnyOf((first, AllOf(tuple(others))))
        scope = (Scope.TOKEN, Scope.WINDOW, Scope.TOKEN, Scope.PROMPT)[index % 4]
        condition = Condition(expression, scope, 16 if scope is Scope.WINDOW else 1, sticky=index < 4)
        reaction = reactions[index % 4]
        added = rows if reaction is Reaction.EDIT else {}
        conditions.append(Guarded(f"bench/{index}", condition, reaction, rows=added))
    return [program] * requests, [Guard(tuple(conditions))] * requests


def counted(subject: Subject, sae: SparseAutoencoder) -> list[Observed]:
    """COUNTED features that are counted at every token as an operator's watch set is, strengths included."""
    rng = torch.Generator().manual_seed(4)
    features = torch.randperm(sae.features, generator=rng)[:COUNTED].tolist()
    return [Observed(subject.site, sae.probe(feature), 1.0) for feature in features]


def dictionary(subject: Subject, sae: SparseAutoencoder) -> UsageCounting:
    """What counts the use of all features of an SAE, at one of USAGE_EVERY steps."""
    whole = Dictionary("bench", subject.site, sae.rows(), sae.norm)
    return UsageCounting([whole], USAGE_EVERY, subject.device)


def no_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that decodes every token to an empty text: random tokens need no words."""
    backend = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]
    return made


def warm_step(
    subject: Subject,
    sites: tuple[Site, ...],
    concurrency: int,
    progress: Progress,
    usage: UsageCounting | None = None,
    compiled: bool = True,
    packed: bool = True,
) -> Step:
    """A warm step on a fresh copy of the subject's model, with what counts the use of features.

    packed: whether its weights are packed where that pays, as a start packs them.
    """
    model = subject.make()
    if packed:
        Packing(model).pack()
    norms = {site: frozenset({Norm.NONE}) for site in sites}
    slots = Slots(model, sites, concurrency, PROMPT_TOKENS + NEW_TOKENS, Capacity())
    step = Step(model, norms, slots, compiled, keeps=() if usage is None else usage.sites)
    warm_up(step, progress, usage=usage)
    return step


def tokens_per_second(
    step: Step,
    asked: list[list[int]],
    steering: list[SteeringProgram] | None = None,
    guards: list[Guard] | None = None,
    observed: Sequence[Observed] = (),
    usage: UsageCounting | None = None,
) -> float:
    """Generated tokens a second for requests that all come at once; the time includes the prefill.

    observed: the features that are counted at every token; usage: what counts all of them now and then.
    Starts the engine and stops it again, so that no OpenMP team of another thread is left.
    """
    engine = TorchEngine(step, no_tokenizer(), (), step.slots.count, usage=usage)
    engine.observe(observed)
    return len(asked) * NEW_TOKENS / answer_all(engine, asked, steering, guards)


def answer_all(
    engine: Engine,
    asked: list[list[int]],
    steering: list[SteeringProgram] | None = None,
    guards: list[Guard] | None = None,
    sampling: SamplingParams | None = None,
    told: Sink | None = None,
    in_turn: bool = False,
) -> float:
    """Seconds that an engine takes to answer requests that all come at once, or each after the last one.

    told: gets the last event of each. The engine is started, and stopped afterwards. Raises RuntimeError for
    requests that fail.
    """
    done = threading.Semaphore(0)
    failures: list[Event] = []

    def sink(events: list[Event]) -> None:
        last = events[-1]
        if not isinstance(last, RequestFinished | RequestFailed):
            return
        if isinstance(last, RequestFailed):
            failures.append(last)
        elif told is not None:
            told([last])
        done.release()

    engine.start()
    steering, guards = steering or [UNSTEERED] * len(asked), guards or [UNGUARDED] * len(asked)
    start = time.perf_counter()
    for index, (prompt, program, guard) in enumerate(zip(asked, steering, guards, strict=True)):
        asks = sampling or _GREEDY
        request = GenerationRequest(f"bench-{index}", tuple(prompt), asks, program, guard=guard)
        engine.submit(request, sink)
        if in_turn:
            done.acquire()
    for _ in [] if in_turn else asked:
        done.acquire()
    elapsed = time.perf_counter() - start
    engine.stop()
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed: {failures[0]}")
    return elapsed
