"""Steered tokens on vLLM are the embedded engine's: on the reference model and on three other families.

Where the two part, the two likeliest tokens lay nearer to each other than rounding may decide: a tie, told by
pytest with its properties.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import pytest
from transformers import PreTrainedModel

from saegis_lab.polyglot.manifest import manifest
from saegis_server.cli.serve.configuration import reference as reference_model
from saegis_server.engine.api import SamplingParams
from saegis_server.rpc.server.loading import load_services
from saegis_server.rpc.server.premises import prepare
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Probe, add, ban, clamp
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.hooked import TIE, random_program
from tests.engine.in_vllm import HAS_VLLM, in_vllm
from tests.engine.serving import Answer, Asked
from tests.rpc.harness import config
from tests.tiers import few, sized

pytestmark = pytest.mark.skipif(not HAS_VLLM, reason="there is no vLLM")
#: More than the greatest number of texts that run at once.
TEXTS, TOKENS = sized(32, 12), sized(64, 24)
GREEDY = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=2)
PROMPTS = (
    "Tell me about the bridge.",
    "Erzähl mir von der Brücke.",
    "Parle-moi du pont.",
    "How do I cook rice?",
    "Расскажи о реке.",
    "给我讲讲这座桥。",
)


@cache
def model_of(family: str) -> PreTrainedModel:
    """Made once: where vLLM calls Transformers' code, no other of its class can be made afterwards."""
    return tiny.model(family, head_dim=32)


def ties(mine: Sequence[Answer], theirs: Sequence[Answer]) -> int:
    """How many of the answers part at a tie. Fails where one does at another token."""
    parted = 0
    for one, other in zip(mine, theirs, strict=True):
        for own, wanted in zip(one.outputs(), other.outputs(), strict=True):
            if own.token_id != wanted.token_id:
                (_, best), (_, next_best) = wanted.alternatives
                assert best - next_best < TIE, f"{best - next_best:.3g} between the two likeliest"
                parted += 1
                break
    return parted


def asked(
    engine: Asked, prompts: Sequence[Sequence[int]], programs: Sequence[SteeringProgram]
) -> list[Answer]:
    """All of them at once."""
    waiting = [engine.ask(prompt, GREEDY, program) for prompt, program in zip(prompts, programs, strict=True)]
    return [answer.wait() for answer in waiting]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("family", few(("mistral", "gemma2", "olmo2"), 1))
def test_a_familys(family: str, compiled: bool, record_property: Callable[[str, object], None]) -> None:
    model = model_of(family)
    prompts = [tiny.prompt_of(seed, 3 + 2 * seed) for seed in range(TEXTS)]
    programs = [random_program(seed, seed % 9) for seed in range(TEXTS)]
    found = []
    for made in (in_vllm(model, compiled=compiled), tiny.RunningEngine(tiny.step(model))):
        with made as engine:
            found.append(asked(engine, prompts, programs))
    record_property("ties", ties(*found))
    texts = [answer.tokens() for answer in found[0]]
    assert any(one != other for one, other in pairwise(texts))


@pytest.fixture(scope="module")
def reference() -> list[list[Answer]]:
    """What the reference model answers on vLLM and embedded, under programs of its SAE."""
    model, source = reference_model()
    found, probes = [], [manifest().clamp.feature, 3, 40, 77, 200]
    for name, compiled in (("vllm", "always"), ("torch", "never")):
        settings = config(model=model, saes=[source], max_num_seqs=8, engine=name, compile=compiled)
        services = load_services(settings, prepare(settings), lambda *_: None)
        services.engine.warm_up(lambda *_: None)
        sae, site = services.catalog.entries[0].sae, services.catalog.entries[0].site
        rows = [sae.probe(feature) for feature in probes]
        prompts = [services.prompts.text(PROMPTS[place % len(PROMPTS)]) for place in range(TEXTS)]
        programs = [_program(rows, place, site) for place in range(TEXTS)]
        with Asked(services.engine) as engine:
            found.append(asked(engine, prompts, programs))
    return found


def _program(probes: Sequence[Probe], place: int, site: Site) -> SteeringProgram:
    """One of several kinds, by the text's place."""
    probe, other = probes[place % len(probes)], probes[(place + 1) % len(probes)]
    program = (
        SiteProgram(),
        SiteProgram(edits=(clamp(probe, 4.0 + place % 7),), watches=(probe,)),
        SiteProgram(edits=(add(probe, 3.0),), bans=(ban(other),)),
        SiteProgram(bans=(ban(probe), ban(other))),
    )[place % 4]
    return SteeringProgram({site: program})


def test_the_reference_models(
    reference: list[list[Answer]], record_property: Callable[[str, object], None]
) -> None:
    mine, theirs = reference
    record_property("ties", ties(mine, theirs))
    assert len({answer.text() for answer in mine}) > len(PROMPTS)
