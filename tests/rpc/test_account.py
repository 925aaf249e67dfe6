"""What receipts and records say of each rule and each edit, counted again in float64 on clean activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, policy_pb2, steering_pb2
from saegis_server.audit.verify import verify
from saegis_server.rpc.auth.watch_set import features_of
from tests.rpc.harness import Running, running
from tests.rpc.test_governor import PROMPT, ask, edit, records, ruled, write
from tests.telemetry.scrape import scrape

#: Bans at the first site, before which nothing is changed: what is active there is what is put out.
RULES = """
rules:
- {id: ban, ban: {features: [{sae: first, indices: [3, 7]}]}}
- {id: again, ban: {features: [{sae: first, index: 7}], strength: 1}}
- {id: now-and-then, ban: {features: [{sae: first, index: 11}]},
   when: {if: {feature: {sae: first, index: 5}, above: 0.3}, over: answer, sticky: false}}
- {id: noted, mode: audit, record: {},
   when: {if: {feature: {sae: first, index: 12}, above: 0.2}, over: token, sticky: false}}
- {id: ends, stop: {}, when: {if: {feature: {sae: second, index: 1}, above: 1000000}, over: token}}
"""


def values(server: Running, tokens: list[int], index: int) -> list[float]:
    """A feature of the first SAE at each token, by its equations in float64; nothing at the first token where
    that is left out."""
    loaded, of_model = server.services.catalog.sae("first", ""), torch.float64
    own, x = loaded.sae, server.services.engine.capture(tokens).result()[loaded.site].to(of_model)
    assert own.b_enc is not None
    assert own.threshold is not None
    read = (x - own.b_dec.to(of_model)) @ own.W_enc[:, index].to(of_model) + own.b_enc[index].to(of_model)
    active = torch.where(read > own.threshold[index].to(of_model).clamp(min=0.0), read, 0.0)
    active[0] *= tokens[0] != server.services.engine.first_token.bos
    return [float(value) for value in active]


def read_by(server: Running, text: str, answer: pb.GenerateResponse) -> tuple[int, list[list[int]]]:
    """How many tokens the prompt has, and what was read of each completion with it."""
    prompt = list(server.services.prompts.text(text))
    return len(prompt), [[*prompt, *choice.token_ids[:-1]] for choice in answer.choices]


def counted(prompt: int, truths: list[list[bool]]) -> tuple[int, int]:
    """Tokens of the prompt and of all completions at which something is true."""
    return sum(truths[0][:prompt]), sum(sum(each[prompt:]) for each in truths)


def pair(tokens: policy_pb2.PhaseTokens) -> tuple[int, int]:
    return tokens.prompt, tokens.completion


def by_index(targets: Any) -> dict[int, tuple[int, int]]:
    return {each.index: pair(each.tokens) for each in targets}


def test_each_rule_has_done_what_a_recount_finds(tmp_path: Path) -> None:
    audit: dict[str, Any] = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with ruled(write(tmp_path, RULES), audit=audit) as (server, stub):
        answer = stub.Generate(ask(PROMPT, 24, n=2))
        prompt, texts = read_by(server, PROMPT, answer)
        of = {index: [values(server, text, index) for text in texts] for index in (3, 5, 7, 11, 12)}
        scored = stub.Score(pb.ScoreRequest(text=PROMPT)).receipt
    active = {index: [[value > 0.0 for value in text] for text in each] for index, each in of.items()}
    rules = {rule.rule: rule for rule in answer.receipt.rules}
    ban = rules["ban"]
    assert by_index(ban.targets) == {index: counted(prompt, active[index]) for index in (3, 7)}
    both = [[*map(any, zip(*pairs, strict=True))] for pairs in zip(active[3], active[7], strict=True)]
    assert pair(ban.acted) == counted(prompt, both)
    assert min(pair(ban.acted)) > 0
    assert next((each.sae, each.site, each.label) for each in ban.targets) == (
        "first",
        "layers.0.resid_post",
        "the red bridge",
    )
    # Two rules of one feature are one row, which acts for both.
    assert pair(rules["again"].acted) == counted(prompt, active[7])
    # While a condition holds that is judged at each token of the answer.
    own = rules["now-and-then"]
    above = [[place >= prompt and value > 0.3 for place, value in enumerate(text)] for text in of[5]]
    put_out = [[a and b for a, b in zip(*two, strict=True)] for two in zip(above, active[11], strict=True)]
    assert pair(own.held) == counted(prompt, above)
    assert own.tokens == own.held.completion > 0
    assert own.first_held == above[0].index(True) - prompt
    assert by_index(own.targets) == {11: counted(prompt, put_out)}
    assert own.acted.completion > 0
    assert by_index(own.readings) == {5: counted(prompt, active[5])}
    # In a prompt a condition is judged at the end alone, over all of its tokens.
    noted = rules["noted"]
    somewhere = [[value > 0.2 for value in text] for text in of[12]]
    assert noted.held.prompt == int(any(somewhere[0][:prompt]))
    assert noted.held.completion == counted(prompt, somewhere)[1]
    assert not noted.HasField("acted")
    assert not noted.targets
    assert not rules["ends"].HasField("first_held")
    reads_as_a_prompt({each.rule: each for each in scored.rules}["ban"], ban)
    log_has_the_same(server, rules, max(max(text) for text in of[5]))
    assert not verify(tmp_path / "audit").problems


def reads_as_a_prompt(read: Any, ban: Any) -> None:
    """A text that is only read acts as a prompt does; what conditions read of it is not counted."""
    assert read.targets == [
        policy_pb2.TargetTokens(
            site=each.site,
            sae="first",
            index=each.index,
            label=each.label,
            tokens=policy_pb2.PhaseTokens(prompt=each.tokens.prompt),
        )
        for each in ban.targets
    ]


def log_has_the_same(server: Any, rules: dict[str, Any], largest: float) -> None:
    """Of those that did anything."""
    ban, own = rules["ban"], rules["now-and-then"]
    first, second = records(server, "answer")
    told = {each["rule"]: each for each in first["rules"]}
    assert set(told) == {"ban", "again", "now-and-then", "noted"}
    assert {each["rule"] for each in second["rules"]} == {"ban", "again", "noted"}
    assert next(each for each in second["rules"] if each["rule"] == "ban")["acted"] == {
        "prompt": ban.acted.prompt,
        "completion": 0,
    }
    for name, each in told.items():
        targets = {target["index"]: target["tokens"] for target in each["targets"]}
        assert targets == {target.index: _fields(target.tokens) for target in rules[name].targets}
        assert each["acted"] == (_fields(rules[name].acted) if rules[name].HasField("acted") else None)
    assert told["now-and-then"]["held"] == _fields(own.held)
    (reading,) = told["now-and-then"]["readings"]
    assert reading["largest"] == pytest.approx(largest, rel=1e-5)
    assert (reading["sae"], reading["index"], reading["tokens"]) == (
        "first",
        5,
        _fields(own.readings[0].tokens),
    )


#: Bans that share rows: of a phase each, and of a rule with a condition that never holds.
PHASES = """
rules:
- {id: early, ban: {features: [{sae: first, indices: [7, 9]}], phase: prompt}}
- {id: late, ban: {features: [{sae: first, index: 7}], phase: completion}}
- {id: always, ban: {features: [{sae: first, index: 3}]}}
"""
CONDITION = """
rules:
- {id: never, ban: {features: [{sae: first, index: 3}], strength: 1},
   when: {if: {feature: {sae: first, index: 5}, above: 1000000}, over: answer}}
allow: [{id: bans, ops: [ban]}]
"""
#: Bounds that share a row, of which one is never reached.
BOUNDS = """
rules:
- {id: low, cap: {features: [{sae: first, index: 12}], value: 0.2}}
- {id: high, cap: {features: [{sae: first, index: 12}], value: 1000000}}
"""


def test_rules_that_share_a_row_have_each_done_what_it_did_in_their_own_phase(tmp_path: Path) -> None:
    """That one of them has a condition, which did not hold, cannot be told; docs/metrics.md says so."""
    with ruled(write(tmp_path, PHASES), write(tmp_path, CONDITION, "q")) as (server, stub):
        answer = stub.Generate(ask(PROMPT, 24))
        prompt, texts = read_by(server, PROMPT, answer)
        of = {index: [[value > 0.0 for value in values(server, texts[0], index)]] for index in (3, 7, 9)}
        found = scrape(server)
    with ruled(write(tmp_path, CONDITION, "alone")) as (server, stub):
        alone = stub.Generate(ask(PROMPT, 2)).receipt
        request = ask(PROMPT, 24, edit(3, 0.0, steering_pb2.OPERATION_BAN))
        beside = stub.Generate(request)
        prompt, texts = read_by(server, PROMPT, beside)
        put_out = counted(prompt, [[value > 0.0 for value in values(server, texts[0], 3)]])
    rules = {rule.rule: rule for rule in answer.receipt.rules}
    three, seven, nine = (counted(prompt, active) for active in of.values())
    assert min(*three, *seven) > 0
    assert by_index(rules["early"].targets) == {7: (seven[0], 0), 9: (nine[0], 0)}
    assert by_index(rules["late"].targets) == {7: (0, seven[1])}
    either = counted(prompt, [[*map(any, zip(of[7][0], of[9][0], strict=True))]])
    assert pair(rules["early"].acted) == (either[0], 0)
    assert pair(rules["late"].acted) == (0, seven[1])
    assert pair(rules["never"].held) == (0, 0)
    assert pair(rules["never"].acted) == pair(rules["always"].acted) == three
    # A request's own ban is joined with it too, and is then what always acts.
    assert pair(alone.rules[0].acted) == (0, 0)
    assert pair(beside.receipt.rules[0].acted) == pair(beside.receipt.edits[0].target.tokens) == put_out
    for name, rule in rules.items():
        for phase, tokens in zip(("prompt", "completion"), pair(rule.acted), strict=True):
            assert found.total("saegis_rule_tokens_total", rule=name, phase=phase) == tokens, (name, phase)


def test_of_bounds_that_share_a_row_each_has_done_what_the_strictest_did(tmp_path: Path) -> None:
    """What the others would have done alone is not counted; docs/metrics.md says so."""
    with ruled(write(tmp_path, BOUNDS)) as (server, stub):
        answer = stub.Generate(ask(PROMPT, 24))
        prompt, texts = read_by(server, PROMPT, answer)
        above = counted(prompt, [[value > 0.2 for value in values(server, texts[0], 12)]])
        found = scrape(server)
    assert min(above) > 0
    assert {rule.rule: pair(rule.acted) for rule in answer.receipt.rules} == {"low": above, "high": above}
    for name in ("low", "high"):
        assert found.total("saegis_rule_tokens_total", rule=name) == sum(above)


def _fields(tokens: policy_pb2.PhaseTokens) -> dict[str, int]:
    return {"prompt": tokens.prompt, "completion": tokens.completion}


def test_each_edit_has_done_what_a_recount_finds(tmp_path: Path) -> None:
    """Without policies; two edits of one feature, each of one phase."""
    halved = [edit(index, 0.5, steering_pb2.OPERATION_SCALE) for index in (3, 3, 12)]
    halved[0].phase, halved[1].phase = steering_pb2.PHASE_PROMPT, steering_pb2.PHASE_COMPLETION
    direction = steering_pb2.Edit(operation=steering_pb2.OPERATION_ADD, value=0.1, site="layers.1.resid_post")
    direction.direction.values.extend([1.0] * 32)
    audit: dict[str, Any] = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with running(audit=audit) as server, grpc.insecure_channel(server.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        answer = stub.Generate(ask(PROMPT, 12, *halved, direction))
        prompt, texts = read_by(server, PROMPT, answer)
        active = {index: [[value > 0.0 for value in values(server, texts[0], index)]] for index in (3, 12)}
    three, twelve = counted(prompt, active[3]), counted(prompt, active[12])
    # The model's own first token is the same in every text, and left as it is.
    everywhere = counted(prompt, [[token != server.services.engine.first_token.bos for token in texts[0]]])
    found = answer.receipt.edits
    assert [each.edit for each in found] == [0, 1, 2, 3]
    assert [pair(each.target.tokens) for each in found] == [(three[0], 0), (0, three[1]), twelve, everywhere]
    assert sum(three) > 0 < sum(twelve)
    assert [each.target.index for each in found[:3]] == [3, 3, 12]
    assert [each.operation for each in found] == [edit.operation for edit in (*halved, direction)]
    assert not found[3].target.HasField("index")
    assert len(found[3].target.direction) == 64
    (record,) = records(server, "answer")
    assert [(each["path"], each["op"], each["tokens"]) for each in record["own_edits"]] == [
        (f"steering.edits[{place}]", op, _fields(each.target.tokens))
        for place, (op, each) in enumerate(zip(("scale", "scale", "scale", "add"), found, strict=True))
    ]


def test_what_was_watched_only_in_part_of_a_request_is_not_told(tmp_path: Path) -> None:
    with ruled(write(tmp_path, RULES)) as (server, stub):
        governor = server.services.governor
        watch_set, policies = governor.watch_set, governor.policies
        assert watch_set is not None
        assert policies is not None

        def read(swapped: bool) -> list[bool]:
            """Whether what conditions read is told of an answer, with the watch set emptied in its midst."""
            chunks = stub.StreamGenerate(pb.StreamGenerateRequest(request=ask(PROMPT, 200)))
            next(chunks)
            if swapped:
                watch_set.watch(())
                next(chunks)
                watch_set.watch(features_of(policies.active))
            *_, last = chunks
            rules = last.complete.receipt.rules
            assert all(rule.HasField("acted") for rule in rules if rule.targets)
            return [each.HasField("tokens") for rule in rules for each in rule.readings]

        assert read(swapped=False) == [True] * 3
        assert read(swapped=True) == [False] * 3
        assert read(swapped=False) == [True] * 3
