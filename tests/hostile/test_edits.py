"""A hostile client: whatever it asks, no banned feature wakes, and every refusal has a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from saegis_server.engine.engine import Engine
from saegis_server.engine.load import Limits
from saegis_server.engine.requests import GenerationRequest, RequestFinished
from saegis_server.engine.sites import Site
from saegis_server.engine.slots import Slots
from saegis_server.engine.step import Step
from saegis_server.policy.bundle import Bundle
from saegis_server.policy.compiled import compile_policy
from saegis_server.policy.decide import PolicySet
from saegis_server.policy.decision import RequestFacts
from saegis_server.policy.world import World
from saegis_server.sae.catalog import Catalog
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity
from tests.engine.tiny import Answer
from tests.policy.hostile import Banned, Client, Try, Witness
from tests.rpc import tiny

SITES = (tiny.FIRST_SITE, "layers.1.mlp_out", tiny.SECOND_SITE)
BANNED = (
    Banned(tiny.FIRST_SITE, "first", (3, 7, 8, 9, 21, 30)),
    Banned(tiny.SECOND_SITE, "second", (0, 1, 2, 3, 40)),
)
#: Lets a request do anything that can be allowed: what holds then, the bans alone hold.
PERMISSIVE = """
apiVersion: saegis.dev/v1
kind: Policy
name: permissive
serial: 1
revision: "1"
match: {tenants: [lab]}
rules:
  - {id: ban-first, ban: {features: [{sae: first, indices: [3, 7, 8, 9, 21, 30]}], strength: 1.5}}
  - {id: ban-second, ban: {features: [{sae: second, indices: [0, 1, 2, 3, 40]}]}}
allow:
  - id: everything
    ops: [clamp, clamp_if_active, scale, add, cap, floor, ablate, ban]
    directions: true
  - id: fractions
    ops: [clamp, clamp_if_active, add, cap, floor]
    directions: true
    unit: norm_fraction
limits: {after_bans: true}
"""
STRICT = """
apiVersion: saegis.dev/v1
kind: Policy
name: strict
serial: 1
revision: "1"
match: {tenants: [public]}
rules:
  - {id: ban-first, ban: {features: [{sae: first, indices: [3, 7, 8, 9, 21, 30]}], strength: 1.5}}
  - {id: ban-second, ban: {features: [{sae: second, indices: [0, 1, 2, 3, 40]}]}}
allow:
  - {id: small, ops: [clamp, add], min: -80, max: 80, directions: true}
limits: {max_edits: 3, max_relative_norm: 0.5}
protect:
  - {id: keep-away, features: [{sae: first, indices: [3, 7, 8, 9, 21, 30]}], max_cosine: 0.6}
"""
#: What a denial may name: the rules above, and what every policy has.
RULES = {"ban-first", "ban-second", "allow", "limits.max_edits", "limits.after_bans", "keep-away"}
TRIES, AT_ONCE = 20_000, 256


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On tensors as small as these a second thread costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Attack:
    """An engine under policies, its witness, and what came of each try."""

    def __init__(self) -> None:
        model = tiny.model()
        sites = {Site.parse(name): frozenset((Norm.NONE,)) for name in SITES}
        slots = Slots(model, tuple(sites), 32, 64, Capacity())
        self.step = Step(model, sites, slots, compiled=False)
        self.catalog = Catalog([each for each in tiny.catalog().entries if each.id != "explosive"])
        self.witness = Witness(model, self.step, self.catalog, BANNED)
        world = World("tiny", SITES, tiny.WIDTH, self.catalog, slots.capacity)
        bundles = [Bundle.from_files({"policy.yaml": text.encode()}) for text in (PERMISSIVE, STRICT)]
        self.policies = PolicySet(tuple(compile_policy(bundle, world) for bundle in bundles))
        self.engine = Engine(self.step, tiny.tokenizer(), (), 32, Limits(queue=2 * AT_ONCE, prefill_chunk=16))
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
                assert {denial.rule for denial in decision.denials} <= RULES
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


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_thousand_tries_wake_no_banned_feature() -> None:
    attack = Attack()
    client = Client(attack.catalog, SITES, BANNED, seed=20261124)
    attack.engine.start()
    try:
        left = TRIES
        while left:
            count = min(AT_ONCE, left)
            attack.run(list(client.tries(count)))
            assert not attack.witness.awake, attack.witness.awake[:5]
            left -= count
    finally:
        attack.engine.stop()
    assert attack.refused + attack.answered + attack.diverged == TRIES
    assert attack.refused > TRIES // 20
    assert attack.answered > TRIES // 2
    assert attack.diverged < TRIES // 10
    assert attack.witness.tokens > 2 * TRIES


def test_without_its_ban_the_witness_sees_the_features_awake() -> None:
    """The witness is not blind: beside bans of other features it sees those that are awake by themselves."""
    attack = Attack()
    catalog = attack.catalog
    other = (Banned(tiny.FIRST_SITE, "first", (0, 1, 2, 4, 5, 6)),)
    witness = Witness(attack.step.model, attack.step, catalog, other)
    attack.engine.start()
    try:
        client = Client(catalog, SITES, BANNED, seed=1)
        attack.run([replace(each, tenant="lab") for each in client.tries(64)])
    finally:
        attack.engine.stop()
    assert len(set(witness.awake)) == len(other[0].features)
    assert not attack.witness.awake
