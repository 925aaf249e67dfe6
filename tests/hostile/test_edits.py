"""Hostile edits: whatever a request asks, bans, caps, floors and clamps hold, and refusals have names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from saegis_server.engine import admission
from saegis_server.engine.api import Engine, FirstToken, GenerationRequest, Limits, RequestFinished
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.engine.vllm.engine import VllmEngine
from saegis_server.engine.vllm.readings import APART
from saegis_server.engine.vllm.served import Served
from saegis_server.engine.vllm.steered import Steered
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import RequestFacts
from saegis_server.policy.decide.world import World
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.steering import admitted, bounds, projection
from saegis_server.steering.admitted import Room
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity
from tests.engine.in_vllm import HAS_VLLM
from tests.engine.plain_core import PlainCore
from tests.engine.serving import Answer
from tests.hostile.edits import Bound, Client, Held, Redirected, Try
from tests.hostile.watched import InTorch, InVllm, Watched
from tests.hostile.witness import Witness
from tests.rpc import tiny
from tests.tiers import sized

SITES = (tiny.FIRST_SITE, Site.parse("layers.1.mlp_out"), tiny.SECOND_SITE)
#: A site where nothing is held, and only redirects are.
FREE_SITE = SITES[1]


def _unmoved(features: tuple[int, ...]) -> Tensor:
    """A unit vector along which these features of the first SAE write nothing."""
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(14))
    rows = tiny.sae("first", 1).W_dec[list(features)]
    found: Tensor = vector - torch.linalg.lstsq(rows.T, vector[:, None]).solution[:, 0] @ rows
    unit: Tensor = found / found.norm()
    return unit


#: What the witness works out is only what redirects write: so the other rules must not move x along it.
REFUSAL = _unmoved((12, 15, 18))
HELD = (
    Held(
        tiny.FIRST_SITE,
        "first",
        (3, 7, 8, 9, 21, 30),
        (Bound(12, high=2.0), Bound(15, low=1.5), Bound(18, 1.25, 1.25)),
        (Redirected((13, 22, 27), 3.0, REFUSAL, strength=0.5),),
    ),
    Held(FREE_SITE, "free", redirected=(Redirected((2, 5, 11), 2.0, 17, threshold=0.05),)),
    Held(
        tiny.SECOND_SITE,
        "second",
        (0, 1, 2, 3, 40),
        (Bound(25, high=0.75), Bound(33, low=3.0), Bound(44, 6.0, 6.0), Bound(47, low=0.5, high=4.0)),
    ),
    Held(tiny.SECOND_SITE, "topk", (4, 11, 29), (Bound(16, high=0.5),)),
)
RULES = """
rules:
  - {id: ban-first, ban: {features: [{sae: first, indices: [3, 7, 8, 9, 21, 30]}], strength: 1.5}}
  - {id: ban-second, ban: {features: [{sae: second, indices: [0, 1, 2, 3, 40]}]}}
  - {id: ban-topk, ban: {features: [{sae: topk, indices: [4, 11, 29]}], strength: 0.5}}
  - {id: cap-topk, cap: {features: [{sae: topk, index: 16}], value: 0.5}}
  - id: redirect-first
    redirect:
      features: [{sae: first, indices: [13, 22, 27]}]
      to: {direction: {file: directions/refusal.safetensors}}
      factor: 3
      strength: 0.5
  - id: redirect-free
    redirect:
      features: [{sae: free, indices: [2, 5, 11]}]
      to: {feature: {sae: free, index: 17}}
      factor: 2
      threshold: 0.05
  - {id: cap-first, cap: {features: [{sae: first, index: 12}], value: 2}}
  - {id: floor-first, floor: {features: [{sae: first, index: 15}], value: 1.5}}
  - {id: clamp-first, clamp: {features: [{sae: first, index: 18}], value: 1.25}}
  - {id: cap-second, cap: {features: [{sae: second, index: 25}], value: 0.75}}
  - {id: floor-second, floor: {features: [{sae: second, index: 33}], value: 3}}
  - {id: clamp-second, clamp: {features: [{sae: second, index: 44}], value: 6}}
  - {id: between, cap: {features: [{sae: second, index: 47}], value: 4}}
  - {id: and-between, floor: {features: [{sae: second, index: 47}], value: 0.5}}
"""
#: Lets a request do anything that can be allowed: what holds then, the rules alone hold.
PERMISSIVE = f"""
apiVersion: saegis.dev/v1
kind: Policy
name: permissive
serial: 1
revision: "1"
match: {{tenants: [lab]}}
{RULES}
allow:
  - id: everything
    ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, redirect]
    directions: true
  - id: fractions
    ops: [clamp, clamp_if_active, add, cap, floor]
    directions: true
    unit: norm_fraction
limits: {{after_bans: true}}
"""
STRICT = f"""
apiVersion: saegis.dev/v1
kind: Policy
name: strict
serial: 1
revision: "1"
match: {{tenants: [public]}}
{RULES}
allow:
  - {{id: small, ops: [clamp, add], min: -80, max: 80, directions: true}}
limits: {{max_edits: 3, max_relative_norm: 0.5}}
protect:
  - {{id: keep-away, features: [{{sae: first, indices: [3, 7, 8, 9, 21, 30]}}], max_cosine: 0.6}}
"""
#: What a denial may name beside the rules above.
OTHERS = {"allow", "limits.max_edits", "limits.after_bans", "keep-away"}
NAMED = OTHERS | set(re.findall(r"id: ([a-z-]+)", RULES))
#: In full. The server's own attack makes up the rest of the twenty thousand: see test_server.py.
TRIES, AT_ONCE = sized(12_000, 256), 256
SLOTS, LENGTH = 32, 64
NORMS = {site: frozenset((Norm.NONE,)) for site in SITES}
LIMITS = Limits(queue=2 * AT_ONCE, prefill_chunk=16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these a second thread costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bos() -> int:
    """The token that every text begins with, and no row moves."""
    found = tiny.tokenizer().bos_token_id
    assert isinstance(found, int)
    return found


def _topk() -> SparseAutoencoder:
    """An SAE of whose features the eight largest are active."""
    return replace(tiny.sae("topk", 6), architecture=Architecture.STANDARD, threshold=None, k=8, digest="")


def _ranked() -> dict[Site, list[RankedDictionary]]:
    """What decides by rank, at its site."""
    return {tiny.SECOND_SITE: [each for each in (_topk().ranked("cpu"),) if each is not None]}


def _digests() -> frozenset[tuple[Site, str]]:
    return frozenset((site, each.digest) for site, own in _ranked().items() for each in own)


def embedded() -> tuple[Engine, Watched]:
    """The embedded engine, eagerly."""
    model = tiny.model()
    slots = Slots(model, SITES, SLOTS, LENGTH, Capacity(), ranked=_ranked())
    step = Step(model, NORMS, slots, compiled=False)
    return TorchEngine(step, tiny.tokenizer(), (), SLOTS, LIMITS, FirstToken(bos())), InTorch(step)


def on_plain_core() -> tuple[Engine, Watched]:
    """The engine on vLLM, with the plain core in vLLM's place."""
    model, capacity = tiny.model(), Capacity()
    steered = Steered(NORMS, Widths(tiny.WIDTH), SLOTS + APART, capacity, "cpu", _ranked())
    room = Room(SITES, Widths(tiny.WIDTH), capacity, model.dtype, _digests())
    core = PlainCore(model, steered, LIMITS.prefill_chunk)
    served = Served(core, LENGTH, len(tiny.tokenizer()), room, model.dtype, None, None, SLOTS)
    return _on_vllm(served), InVllm(steered, model)


def in_vllm(dtype: torch.dtype = torch.float32) -> tuple[Engine, Watched]:
    """The engine on vLLM, with heads that it takes as they are."""
    from saegis_server.engine.vllm.served import serve_in_vllm

    model: Any = tiny.model(head_dim=32)
    model = model.to(dtype)
    loaded = LoadedModel("tiny", model, tiny.tokenizer(), "", (), tiny.CONTEXT)
    wishes = Wishes(count=SLOTS, length=LENGTH)
    served = serve_in_vllm(loaded, NORMS, wishes, Capacity(), lambda *_: None, ranked=_ranked())
    core: Any = served.core
    runner = core._core.model_executor.driver_worker.worker.model_runner
    return _on_vllm(served), InVllm(runner.part.steered, runner.model, runner.part.layers)


def _on_vllm(served: Served) -> VllmEngine:
    return VllmEngine(served, tiny.tokenizer(), (), SLOTS, LIMITS, FirstToken(bos()))


Made = Callable[[], tuple[Engine, Watched]]


class Tried(NamedTuple):
    """An engine that is tried, so many times, and the type of its activations."""

    made: Made
    tries: int
    activations: torch.dtype = torch.float32


#: In the environment of vLLM the engine on it, elsewhere those that need none.
ENGINES = (
    {
        "vllm": Tried(in_vllm, sized(2_000, 256)),
        "vllm in bfloat16": Tried(partial(in_vllm, torch.bfloat16), sized(2_000, 256), torch.bfloat16),
    }
    if HAS_VLLM
    else {
        "embedded": Tried(embedded, TRIES),
        "plain core": Tried(on_plain_core, sized(1_024, 256)),
    }
)
FIRST = next(iter(ENGINES.values()))


class Attack:
    """An engine under policies, its witness, and what came of each try."""

    def __init__(self, tried: Tried = FIRST) -> None:
        self.engine, self.watched = tried.made()
        own = [each for each in tiny.catalog().entries if each.id != "explosive"]
        added = LoadedSAE(tiny.sae("free", 4), FREE_SITE), LoadedSAE(_topk(), tiny.SECOND_SITE)
        self.catalog = Catalog([*own, *added])
        self.witness = Witness(self.watched, self.catalog, HELD, bos(), tried.activations)
        widths, capacity = Widths(tiny.WIDTH), self.engine.capacity
        world = World("tiny", SITES, widths, self.catalog, capacity, activations=tried.activations)
        files = {"directions/refusal.safetensors": save({"refusal": REFUSAL})}
        bundles = [
            Bundle.from_files({"policy.yaml": text.encode(), **files}) for text in (PERMISSIVE, STRICT)
        ]
        self.policies = PolicySet(tuple(compile_policy(bundle, world) for bundle in bundles))
        self.refused = self.answered = self.diverged = 0

    def run(self, tries: list[Try]) -> None:
        """Ask all of them at once and wait for what comes."""
        waiting = []
        for number, each in enumerate(tries):
            facts = RequestFacts(each.tenant, frozenset(("use", "steer")), "tiny", each.edits)
            decision = self.policies.decide(facts)
            if not decision.allowed:
                self.refused += 1
                assert decision.denials
                assert {denial.policy for denial in decision.denials} == {_policy_of(each.tenant)}
                assert {denial.rule for denial in decision.denials} <= NAMED
                continue
            request = GenerationRequest(
                str(number), each.prompt, each.sampling, decision.program, guard=decision.guard
            )
            answer = Answer()
            self.engine.submit(request, answer)
            waiting.append(answer)
        for answer in waiting:
            answer.wait(120)
            if isinstance(answer.events[-1], RequestFinished):
                self.answered += 1
            else:
                self.diverged += 1


def _policy_of(tenant: str) -> str:
    return {"lab": "permissive", "public": "strict"}[tenant]


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("on", ENGINES)
def test_no_try_undoes_what_is_held(on: str, unmeasured: None) -> None:
    tries = ENGINES[on].tries
    attack = Attack(ENGINES[on])
    client = Client(attack.catalog, SITES, HELD, bos(), seed=20261124)
    attack.engine.start()
    try:
        left = tries
        while left:
            count = min(AT_ONCE, left)
            attack.run(list(client.tries(count)))
            assert not attack.witness.awake, attack.witness.awake[:5]
            assert not attack.witness.beyond, attack.witness.beyond[:5]
            assert not attack.witness.undone, attack.witness.undone[:5]
            left -= count
    finally:
        attack.engine.stop()
    assert attack.refused + attack.answered + attack.diverged == tries
    assert attack.refused > tries // 20
    assert attack.answered > tries // 2
    assert attack.diverged < tries // 10
    assert attack.witness.tokens > 2 * tries
    assert attack.witness.left_out > tries // 20
    assert attack.witness.redirected > tries


def test_the_witness_is_not_blind() -> None:
    """It sees features that are awake by themselves, values beyond bounds, and what no row moves."""
    attack = Attack()
    other = (
        Held(tiny.FIRST_SITE, "first", (0, 1, 2, 4, 5, 6), (Bound(10, high=1.0), Bound(11, low=1.0))),
        Held(tiny.SECOND_SITE, "topk", (41, 42)),
    )
    witness = Witness(attack.watched, attack.catalog, other, bos())
    of_first_tokens = Witness(attack.watched, attack.catalog, HELD, bos=-1)
    attack.engine.start()
    try:
        client = Client(attack.catalog, SITES, HELD, bos(), seed=1)
        attack.run([replace(each, tenant="lab") for each in client.tries(64)])
    finally:
        attack.engine.stop()
    awake = {f"feature {feature}" for each in other for feature in each.banned}
    assert {told.split(" at ")[0] for told in witness.awake} == awake
    assert {told.split(" at ")[0] for told in witness.beyond} == {"feature 10", "feature 11"}
    assert not attack.witness.awake
    assert not attack.witness.beyond
    assert of_first_tokens.awake, "no row moves the model's own BOS, where features are awake"


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing that was worked out before is known, nor what the test works out afterwards."""
    for known in (projection._geometry, admission._admitted):
        known.cache_clear()
    yield
    for known in (projection._geometry, admission._admitted):
        known.cache_clear()


@pytest.mark.parametrize("guarantee", ["of edits", "of bans"])
def test_the_witness_sees_redirects_undone(
    guarantee: str, monkeypatch: pytest.MonkeyPatch, forgotten: None
) -> None:
    """Where a request's edits write what they like, or its bans go down along a target."""
    if guarantee == "of edits":
        monkeypatch.setattr(admitted, "unreserved_moves", lambda *_: None)
    else:
        monkeypatch.setattr(bounds, "_targets", lambda _: iter(()))
    attack = Attack()
    attack.engine.start()
    try:
        client = Client(attack.catalog, SITES, HELD, bos(), seed=2)
        attack.run([replace(each, tenant="lab") for each in client.tries(128)])
    finally:
        attack.engine.stop()
    places = {told.partition(": ")[0].partition(" at ")[2] for told in attack.witness.undone}
    assert places == {str(tiny.FIRST_SITE), str(FREE_SITE)}
    assert not attack.witness.awake
