"""The series by rule: a recount of random traffic, every mode and action, and how many there may be."""

import random
from pathlib import Path

import grpc
import pytest
import torch

from saegis.v1 import policy_pb2, policy_pb2_grpc
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.telemetry.rules import MOST_RULES, ROOM, RuleEffect, RuleName, RuleSeries
from saegis_server.telemetry.tenants import TenantClasses
from tests.rpc import tiny
from tests.rpc.harness import Running, eventually
from tests.rpc.test_governor import ask, denied, edit, ruled, write
from tests.telemetry.promtool import check_metrics
from tests.telemetry.scrape import Scrape, scrape

RULES = """
rules:
- {id: ban, ban: {features: [{sae: first, indices: [3, 7, 11]}]}}
- {id: cap, cap: {features: [{sae: second, indices: [1, 2]}], value: 0.2, phase: completion}}
- {id: peak, watch: {features: [{sae: first, index: 5}]}}
allow: [{id: any, uses: [token_ids]}]
"""
CONDITIONS = """
rules:
- {id: noted, mode: audit, when: {if: {feature: {sae: first, index: 5}, above: -1000}, over: token},
   record: {}}
- {id: stops, when: {if: {feature: {sae: first, index: 5}, above: -1000}, over: answer}, stop: {}}
- {id: refuses, mode: shadow, when: {if: {feature: {sae: first, index: 5}, above: -1000}, over: prompt},
   refuse: {message: not this}}
"""


def firing(server: Running, tokens: list[int], sae: str, features: list[int]) -> list[bool]:
    """At which tokens any of some features fires, by the SAE's equations in float64 on clean activations."""
    loaded = server.services.catalog.sae(sae, "")
    x = server.services.engine.capture(tokens).result()[loaded.site].to(torch.float64)
    own, of_model = loaded.sae, torch.float64
    assert own.b_enc is not None
    assert own.threshold is not None
    read = (x - own.b_dec.to(of_model)) @ own.W_enc.to(of_model) + own.b_enc.to(of_model)
    fires = (read > own.threshold.to(of_model).clamp(min=0.0))[:, features].any(-1)
    fires[0] &= tokens[0] != server.services.engine.first_token.bos
    return [bool(truth) for truth in fires]


def test_rules_count_the_tokens_on_which_they_act(tmp_path: Path) -> None:
    """Bans at the first site, which nothing before them changes: what fires there is what is put out."""
    chance, expected = random.Random(1), {"prompt": 0, "completion": 0}
    with ruled(write(tmp_path, RULES), tenant_classes={"own": ("default",)}) as (server, stub):
        touched = 0
        for number in range(6):
            text = " ".join(chance.choices(tiny.TEXT.split(), k=chance.randint(1, 12)))
            answer = stub.Generate(ask(text, chance.randint(1, 8), n=1 + number % 2))
            prompt = list(server.services.prompts.text(text))
            by_choice = [
                firing(server, [*prompt, *list(choice.token_ids)[:-1]], "first", [3, 7, 11])
                for choice in answer.choices
            ]
            expected["prompt"] += sum(by_choice[0][: len(prompt)])
            expected["completion"] += sum(sum(fires[len(prompt) :]) for fires in by_choice)
            touched += any(map(any, by_choice))
        found = scrape(server)
    ban = {"policy": "p", "rule": "ban", "mode": "enforce", "action": "ban"}
    assert expected["prompt"] > 0 < expected["completion"]
    for phase, count in expected.items():
        assert found.total("saegis_rule_tokens_total", **ban, phase=phase) == count
    assert found.total("saegis_rule_requests_total", **ban) == touched
    assert found.total("saegis_rule_tokens_total", rule="cap", phase="prompt") == 0.0
    assert not list(found.samples("saegis_rule_tokens_total", rule="peak"))
    check_metrics(found.text)


def test_conditions_stops_and_denials_are_counted_in_every_mode(tmp_path: Path) -> None:
    with ruled(write(tmp_path, RULES), write(tmp_path, CONDITIONS, "q")) as (server, stub):
        answer = stub.Generate(ask("the river", 8, n=2))
        denied(stub, ask("the river", 2, edit(3, 1.0)))
        found = scrape(server)
    assert {choice.finish_reason for choice in answer.choices} == {4}
    assert {
        (labels["rule"], labels["mode"]): value
        for labels, value in found.samples("saegis_rule_conditions_total")
    } == {("noted", "audit"): 1.0, ("stops", "enforce"): 1.0, ("refuses", "shadow"): 1.0}
    assert found.total("saegis_rule_answers_stopped_total", rule="stops") == 2.0
    assert not list(found.samples("saegis_rule_answers_stopped_total", rule="refuses"))
    # The request is denied twice, once as a stream; each policy says why.
    assert found.total("saegis_rule_denials_total", policy="p", rule="ban", mode="enforce") == 2.0
    assert found.total("saegis_answers_total", finish_reason="content_filter") == 2.0


def test_a_refusal_is_counted(tmp_path: Path) -> None:
    body = CONDITIONS.replace("mode: shadow, ", "").replace("over: answer", "over: prompt")
    with ruled(write(tmp_path, body)) as (server, stub):
        denied(stub, ask("the river", 2))
        found = scrape(server)
    assert found.total("saegis_rule_requests_refused_total", rule="refuses") == 2.0
    assert found.total("saegis_rule_requests_total", rule="refuses") == 2.0
    assert found.total("saegis_answers_total", finish_reason="refused") == 2.0


def test_the_series_of_a_replaced_policy_go_away(tmp_path: Path) -> None:
    with (
        ruled(write(tmp_path, RULES)) as (server, stub),
        grpc.insecure_channel(server.target) as channel,
    ):
        stub.Generate(ask("the river", 4))
        other = RULES.replace("id: ban", "id: other")
        archive = Bundle.read(write(tmp_path, other, serial=2)).archive()
        policies = policy_pb2_grpc.PolicyServiceStub(channel)
        etag = policies.GetPolicy(policy_pb2.GetPolicyRequest(name="p")).policy.etag
        policies.PutPolicy(policy_pb2.PutPolicyRequest(bundle=archive, etag=etag))
        eventually(server.is_idle)
        before, found = scrape(server), scrape(server)
    assert rules_in(before) == rules_in(found) == {"other", "cap", "peak"}


def rules_in(found: Scrape) -> set[str]:
    """The rules that any series names."""
    return {
        sample.labels["rule"]
        for family in found.families.values()
        for sample in family.samples
        if "rule" in sample.labels
    }


@pytest.mark.parametrize("rules", [1, MOST_RULES, 10 * MOST_RULES])
@pytest.mark.parametrize("classes", [0, 8])
def test_there_are_a_bounded_number_of_series(rules: int, classes: int) -> None:
    tenants = TenantClasses({f"class-{number}": (f"tenant-{number}",) for number in range(classes)})
    series = RuleSeries(tenants)
    named = [
        RuleName("p", f"r{number}", "enforce", ("ban", "stop", "refuse")[number % 3])
        for number in range(rules)
    ]
    series.show(dict.fromkeys(named, True))

    def everything_happens(step: int) -> int:
        for number, rule in enumerate(named):
            series.count(rule, RuleEffect(1, 2, True, 1, True), f"tenant-{number % 11}")
            series.deny([RuleName("p", f"{step}-{number}", "enforce")])
        return sum(len(family.samples) for family in series.collect())

    counts = [everything_happens(step) for step in range(2)]
    # Denials may be of what is no rule, and have room of their own.
    assert max(counts) <= ROOM + 10 + MOST_RULES + 1
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in series.collect()
        for sample in family.samples
    }
    tokens = sum(value for (name, *_), value in samples.items() if name == "saegis_rule_tokens_total")
    requests = sum(value for (name, *_), value in samples.items() if name == "saegis_rule_requests_total")
    assert requests == 2 * rules
    if rules == 1:
        assert tokens == 2 * 3
