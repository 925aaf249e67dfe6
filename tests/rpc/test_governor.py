"""Requests under policies over a socket: who rules whom, what is told, recorded and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from saegis.v1 import generation_pb2 as pb
from saegis.v1 import generation_pb2_grpc, policy_pb2, policy_pb2_grpc, steering_pb2
from saegis_server.audit.verify import verify
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.steering import admitted
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.projection import HeldGeometry, held_geometry
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.rpc import tiny
from tests.rpc.harness import Failure, Running, eventually, failure, running

HEAD = """
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: {serial}
revision: r{serial}
"""
BAN = "rules: [{id: ban, reason: because, ban: {features: [{sae: first, index: 3}], strength: 2}}]\n"
#: The requests of these tests are plain text, which is beyond the ordinary beside a chat template.
USES = "apiVersion: saegis.dev/v1\nkind: PolicyPart\nallow: [{id: uses, uses: [text, n, score]}]\n"
PROMPT = "the red bridge over the river"


def write(folder: Path, body: str, name: str = "p", serial: int = 1) -> Path:
    """A bundle's directory."""
    target = folder / f"{name}-{serial}"
    target.mkdir()
    (target / "policy.yaml").write_text(HEAD.format(name=name, serial=serial) + body)
    (target / "rules").mkdir()
    (target / "rules/uses.yaml").write_text(USES)
    return target


@contextmanager
def ruled(
    *bundles: Path, **settings: Any
) -> Iterator[tuple[Running, generation_pb2_grpc.GenerationServiceStub]]:
    """A server under policies, and a stub."""
    unmatched = settings.pop("unmatched", "refuse")
    policies = {"bundles": [str(each) for each in bundles], "unmatched": unmatched}
    with (
        running(max_num_seqs=8, policies=policies, **settings) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield server, generation_pb2_grpc.GenerationServiceStub(channel)


def ask(
    text: str = PROMPT, max_tokens: int = 6, *edits: steering_pb2.Edit, **fields: Any
) -> pb.GenerateRequest:
    """A greedy request."""
    sampling = pb.SamplingParams(temperature=0.0, max_tokens=max_tokens, n=fields.pop("n", 1))
    steering = steering_pb2.Steering(edits=edits)
    return pb.GenerateRequest(text=text, sampling=sampling, steering=steering, **fields)


def edit(index: int, value: float, operation: int = steering_pb2.OPERATION_CLAMP) -> steering_pb2.Edit:
    """An edit of a feature of the first SAE."""
    feature = steering_pb2.FeatureRef(sae="first", index=index)
    return steering_pb2.Edit(operation=operation, value=value, feature=feature)  # type: ignore[arg-type]


def denied(stub: generation_pb2_grpc.GenerationServiceStub, request: pb.GenerateRequest) -> Failure:
    """How a request is denied, the same as a stream."""
    found = failure(lambda: stub.Generate(request))
    streamed = failure(lambda: stub.StreamGenerate(pb.StreamGenerateRequest(request=request)))
    assert (found.code, found.reason) == (streamed.code, streamed.reason)
    assert (found.code, found.reason) == (grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED")
    return found


def rule_of(found: Failure) -> str:
    return str(found.details["ErrorInfo"].metadata["rule"])


def records(server: Running, kind: str = "") -> list[dict[str, Any]]:
    """What the audit log holds."""
    assert server.config.audit is not None
    lines = (server.config.audit.directory / "audit.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [each for each in found if not kind or each["kind"] == kind]


def test_without_allowance_every_edit_is_denied_by_name(tmp_path: Path) -> None:
    with ruled(write(tmp_path, BAN)) as (server, stub):
        found = denied(stub, ask(PROMPT, 4, edit(5, 1.0)))
        assert rule_of(found) == "allow"
        (violation,) = found.details["BadRequest"].field_violations
        assert violation.field == "steering.edits[0]"
        both = denied(stub, ask(PROMPT, 4, edit(5, 1.0), edit(3, 9.0)))
        told = [(each.field, each.description) for each in both.details["BadRequest"].field_violations]
        assert any(field == "steering.edits[1]" and "p/ban" in text for field, text in told)
        eventually(server.is_idle)


def test_the_receipt_tells_rules_or_only_that_there_are_some(tmp_path: Path) -> None:
    secret = write(tmp_path, "transparency: steered\n" + BAN.replace("index: 3", "index: 5"), "quiet")
    with ruled(write(tmp_path, BAN), secret) as (_, stub):
        receipt = stub.Generate(ask()).receipt
        assert receipt.policy_revision == "p@r1,quiet@r1"
        assert [(rule.policy, rule.rule, rule.reason) for rule in receipt.rules] == [("p", "ban", "because")]
        assert list(receipt.rules[0].labels) == ["the red bridge"]
        # What a rule that is told did would tell of those that are not.
        assert not receipt.rules[0].HasField("acted")
        assert not receipt.rules[0].targets
        assert receipt.ruled
        assert receipt.decision_id
        assert (list(receipt.sites), receipt.program_digest) == ([], "")
    with ruled(write(tmp_path, "transparency: steered\n" + BAN, "only")) as (_, stub):
        receipt = stub.Generate(ask()).receipt
        assert (list(receipt.rules), receipt.ruled) == ([], True)


def test_a_request_may_ban_more_where_that_is_allowed(tmp_path: Path) -> None:
    allow = "allow: [{id: bans, ops: [ban]}]\n"
    with ruled(write(tmp_path, BAN + allow)) as (_, stub):
        receipt = stub.Generate(ask(PROMPT, 4, edit(5, 1.0, steering_pb2.OPERATION_BAN))).receipt
        assert receipt.sites[0].bans == 2


def test_decisions_are_counted_by_policy_and_mode(tmp_path: Path) -> None:
    bundles = [
        write(tmp_path, "allow: [{id: any, ops: [clamp]}]\n" + BAN.replace("index: 3", "index: 12")),
        write(tmp_path, "mode: audit\n" + BAN, "audited"),
        write(tmp_path, "mode: shadow\n" + BAN, "shadowed"),
    ]
    with ruled(*bundles) as (server, stub):
        stub.Generate(ask(PROMPT, 2, edit(5, 1.0)))
        denied(stub, ask(PROMPT, 2, edit(12, 1.0)))
        counted = {
            (sample.labels["policy"], sample.labels["decision"], sample.labels["mode"]): sample.value
            for family in server.services.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "saegis_policy_decisions_total"
        }
    # `denied` asks twice. The two that only record would allow no edit at all.
    assert counted == {
        ("p", "allow", "enforce"): 1.0,
        ("p", "deny", "enforce"): 2.0,
        ("audited", "deny", "audit"): 3.0,
        ("shadowed", "deny", "shadow"): 3.0,
    }


def test_whom_no_policy_concerns_is_denied(tmp_path: Path) -> None:
    elsewhere = write(tmp_path, "match: {tenants: [somebody]}\n" + BAN)
    with ruled(elsewhere, unmatched="warn") as (_, stub):
        assert rule_of(denied(stub, ask())) == "match"


def test_two_tenants_in_one_batch_each_get_their_own(tmp_path: Path) -> None:
    """Also one after the other in the same slots: nothing that one leaves behind reaches the next."""
    bundles = [
        write(
            tmp_path, f"match: {{tenants: [{tenant}]}}\n" + BAN.replace("index: 3", f"index: {index}"), tenant
        )
        for tenant, index in (("acme", 3), ("other", 12))
    ]
    identities = tmp_path / "identities.yaml"
    entries = [
        f"  - {{name: {tenant}, tenant: {tenant}, roles: [use],"
        f" token_sha256: {hashlib.sha256(f'saegis_{tenant}'.encode()).hexdigest()}}}\n"
        for tenant in ("acme", "other")
    ]
    text = "apiVersion: saegis.dev/v1\nkind: Identities\nprincipals:\n" + "".join(entries)
    identities.write_text(text)
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with ruled(*bundles, identities=str(identities), audit=audit) as (server, stub):

        def answer(tenant: str) -> pb.GenerateResponse:
            return stub.Generate(ask(max_tokens=24), metadata=(("authorization", f"Bearer saegis_{tenant}"),))

        alone = {tenant: answer(tenant) for tenant in ("acme", "other")}
        assert alone["acme"].receipt.program_digest != alone["other"].receipt.program_digest
        assert alone["acme"].choices[0].token_ids != alone["other"].choices[0].token_ids
        tenants = ["acme", "other"] * 16
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(answer, tenants))
        for tenant, found in zip(tenants, together, strict=True):
            assert found.choices[0].token_ids == alone[tenant].choices[0].token_ids
            assert found.receipt.policy_revision == f"{tenant}@r1"
            assert found.receipt.program_digest == alone[tenant].receipt.program_digest
        missing = failure(lambda: stub.Generate(ask()))
        assert missing.code is grpc.StatusCode.UNAUTHENTICATED
        eventually(lambda: bool(records(server, "identity")))
        assert records(server, "identity")[0]["reason"] == "missing"
        eventually(server.is_idle)


@pytest.mark.parametrize("over", ["prompt", "token"])
def test_a_condition_refuses_or_stops(tmp_path: Path, over: str) -> None:
    readings = ", ".join(f"{{feature: {{sae: first, index: {index}}}, above: 0}}" for index in (3, 5))
    when = f"when: {{if: {{any: [{readings}]}}, over: {over}}}"
    action = "refuse: {message: not about bridges}" if over == "prompt" else "stop: {}"
    with ruled(write(tmp_path, f"rules: [{{id: watched, {when}, {action}}}]\n")) as (server, stub):
        if over == "prompt":
            found = denied(stub, ask())
            assert rule_of(found) == "watched"
            assert "not about bridges" in found.message
        else:
            answer = stub.Generate(ask(n=2))
            for choice in answer.choices:
                assert choice.finish_reason == pb.FINISH_REASON_CONTENT_FILTER
                assert len(choice.token_ids) < 6
            assert answer.receipt.rules[0].tokens > 0
        eventually(server.is_idle)


def test_rules_in_audit_mode_change_nothing_and_are_told(tmp_path: Path) -> None:
    with running(max_num_seqs=8) as free, grpc.insecure_channel(free.target) as channel:
        plain = generation_pb2_grpc.GenerationServiceStub(channel).Generate(ask())
    with ruled(write(tmp_path, "mode: audit\n" + BAN)) as (_, stub):
        answer = stub.Generate(ask(PROMPT, 6, edit(5, 0.0)))
        assert not answer.receipt.ruled
        assert [rule.mode for rule in answer.receipt.rules] == [policy_pb2.RULE_MODE_AUDIT]
        unsteered = stub.Generate(ask())
        assert unsteered.choices[0].token_ids == plain.choices[0].token_ids


def test_scores_are_under_the_policy_too(tmp_path: Path) -> None:
    with ruled(write(tmp_path, BAN)) as (_, stub):
        score = stub.Score(pb.ScoreRequest(text=PROMPT))
        assert score.receipt.sites[0].bans == 1
        assert score.receipt.ruled
        request = pb.ScoreRequest(text=PROMPT, steering=steering_pb2.Steering(edits=[edit(3, 9.0)]))
        assert failure(lambda: stub.Score(request)).reason == "POLICY_DENIED"


def test_a_score_is_compared_with_the_rules_and_not_with_the_bare_model(tmp_path: Path) -> None:
    """By hand, on a server without policies: the same ban, and the clamp of a condition that holds."""
    when = "when: {if: {feature: {sae: first, index: 5}, above: -1000}, over: prompt}"
    scaled = f"- {{id: moved, {when}, scale: {{features: [{{sae: second, index: 12}}], factor: 4}}}}\n"
    rules = f"rules:\n- {{id: ban, ban: {{features: [{{sae: first, index: 3}}], strength: 2}}}}\n{scaled}"
    allow = "allow: [{id: any, ops: [add]}, {id: scores, uses: [score]}]\nlimits: {after_bans: true}\n"
    second = steering_pb2.FeatureRef(sae="second", index=12)
    by_hand = [
        edit(3, 2.0, steering_pb2.OPERATION_BAN),
        steering_pb2.Edit(operation=steering_pb2.OPERATION_SCALE, value=4.0, feature=second),
    ]
    own = edit(20, 3.0, steering_pb2.OPERATION_ADD)

    def score(*edits: steering_pb2.Edit, **fields: Any) -> pb.ScoreRequest:
        return pb.ScoreRequest(text=PROMPT, steering=steering_pb2.Steering(edits=edits), **fields)

    with running(max_num_seqs=8) as free, grpc.insecure_channel(free.target) as channel:
        unruled = generation_pb2_grpc.GenerationServiceStub(channel)
        wanted, bare = unruled.Score(score(*by_hand)), unruled.Score(score(unruled=True))
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with ruled(write(tmp_path, rules + allow), audit=audit) as (server, stub):
        alone, edited = stub.Score(score()), stub.Score(score(own))
        refused = failure(lambda: stub.Score(score(unruled=True)))
        decisions = records(server, "decision")
    assert alone.plain_logprobs == alone.logprobs
    assert list(alone.logprobs) == pytest.approx(list(wanted.logprobs), abs=1e-5)
    assert set(alone.divergences) == {0.0}
    assert edited.plain_logprobs == alone.plain_logprobs != edited.logprobs
    assert max(edited.divergences) > 0.0
    difference = [abs(one - two) for one, two in zip(alone.plain_logprobs, bare.logprobs, strict=True)]
    assert max(difference) > 0.01, "the rules hardly changed anything"
    assert bare.plain_logprobs == bare.logprobs
    assert (refused.reason, refused.fields) == ("POLICY_DENIED", ["unruled"])
    asked = [{use["use"] for use in each["uses"]} for each in decisions]
    assert ["unruled" in uses for uses in asked] == [False, False, True]


def test_what_the_rules_refuse_no_edit_makes_readable(tmp_path: Path) -> None:
    """A condition that a request's edits keep from holding holds in the plain reading, which is refused."""
    allow = "allow: [{id: any, ops: [add]}]\n"
    peaks = f"rules: [{{id: peaks, watch: {{features: [{{sae: second, indices: {list(range(8))}}}]}}}}]\n"
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    move = edit(20, 300.0, steering_pb2.OPERATION_ADD)
    with ruled(write(tmp_path, peaks + allow, "seen"), audit=audit) as (server, stub):
        for edits in ((), (move,)):
            stub.Generate(ask(PROMPT, 1, *edits))
        before, after = (list(each["peaks"].values()) for each in records(server, "answer"))
        names = list(records(server, "answer")[0]["peaks"])
    falls = [one - other for one, other in zip(before, after, strict=True)]
    fall, place = max((fall, place) for place, fall in enumerate(falls))
    assert fall > 0.01
    index = names[place].rpartition("/")[2].rpartition(":")[2]
    reading = f"{{feature: {{sae: second, index: {index}}}, above: {before[place] - fall / 2}}}"
    when = f"when: {{if: {reading}, over: prompt}}"
    body = f"rules: [{{id: no, {when}, refuse: {{message: no}}}}]\n{allow}"
    with ruled(write(tmp_path, body)) as (_, stub):
        request = pb.ScoreRequest(text=PROMPT, steering=steering_pb2.Steering(edits=[move]))
        assert rule_of(failure(lambda: stub.Score(request))) == "no"
        assert stub.Generate(ask(PROMPT, 1, move)).choices, "with the edit the condition does not hold"


def test_an_urgent_policy_ends_what_runs(tmp_path: Path) -> None:
    with ruled(write(tmp_path, BAN)) as (server, stub):
        stream = stub.StreamGenerate(pb.StreamGenerateRequest(request=ask(max_tokens=1500)))
        next(stream)
        urgent = write(tmp_path, "urgent: true\n" + BAN, serial=2)
        with grpc.insecure_channel(server.target) as channel:
            policies = policy_pb2_grpc.PolicyServiceStub(channel)
            etag = policies.GetPolicy(policy_pb2.GetPolicyRequest(name="p")).policy.etag
            bundle = Bundle.read(urgent).archive()
            policies.PutPolicy(policy_pb2.PutPolicyRequest(bundle=bundle, etag=etag))
        *_, last = stream
        assert last.complete.outcomes[0].finish_reason == pb.FINISH_REASON_ABORT
        assert last.complete.receipt.policy_revision == "p@r1"
        assert stub.Generate(ask()).receipt.policy_revision == "p@r2"


def test_every_answer_has_its_records_and_no_prompt_is_in_them(tmp_path: Path) -> None:
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with ruled(write(tmp_path, BAN), audit=audit) as (server, stub):
        receipts = [stub.Generate(ask()).receipt for _ in range(3)]
        *_, last = stub.StreamGenerate(pb.StreamGenerateRequest(request=ask()))
        receipts.append(last.complete.receipt)
        denied(stub, ask(PROMPT, 4, edit(3, 9.0)))
        answers = {each["decision_id"]: each for each in records(server, "answer")}
        decisions = {each["decision_id"]: each for each in records(server, "decision")}
        for receipt in receipts:
            assert answers[receipt.decision_id]["program_digest"] == receipt.program_digest
            assert answers[receipt.decision_id]["finish_reasons"] == ["length"]
            assert decisions[receipt.decision_id]["allowed"]
        assert sum(not each["allowed"] for each in decisions.values()) == 2
        directory = tmp_path / "audit"
        assert PROMPT not in (directory / "audit.jsonl").read_text()
    assert not verify([directory / "audit.jsonl"]).problems


def test_prompts_are_recorded_where_that_is_asked_for(tmp_path: Path) -> None:
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never", "prompts": True}
    with ruled(write(tmp_path, BAN), audit=audit) as (server, stub):
        stub.Generate(ask())
        assert PROMPT in records(server, "decision")[0]["prompt"]


@pytest.mark.parametrize("on_failure", ["refuse", "continue"])
def test_without_its_record_no_request_is_answered(tmp_path: Path, on_failure: str) -> None:
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never", "on_failure": on_failure}
    with ruled(write(tmp_path, BAN), audit=audit) as (server, stub):
        stub.Generate(ask())
        assert server.services.governor.audit is not None
        server.services.governor.audit.close()
        if on_failure == "continue":
            assert stub.Generate(ask()).receipt.ruled
            return
        found = failure(lambda: stub.Generate(ask()))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
        assert "RetryInfo" in found.details
        eventually(server.is_idle)


def test_a_governed_request_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room and geometry at the one site with rows, from the wire to the table of the slot."""
    allow = "allow: [{id: some, ops: [ban, clamp, watch]}]\n"
    checked: list[Site] = []
    worked_out: list[Site | None] = []

    def check(own: Capacity, site: Site, program: SiteProgram) -> None:
        checked.append(site)
        look(own, site, program)

    def geometry(program: SiteProgram, site: Site | None, activations: torch.dtype) -> HeldGeometry | None:
        worked_out.append(site)
        return held_geometry(program, site, activations)

    look = Capacity.check
    with ruled(write(tmp_path, BAN + allow)) as (_, stub):
        stub.Generate(ask())
        monkeypatch.setattr(Capacity, "check", check)
        monkeypatch.setattr(admitted, "held_geometry", geometry)
        request = ask(PROMPT, 4, edit(7, 1.0, steering_pb2.OPERATION_BAN), edit(5, 1.0))
        feature = steering_pb2.FeatureRef(sae="first", index=8)
        request.steering.watches.add(feature=feature)
        for _ in range(2):
            (site,) = stub.Generate(request).receipt.sites
            assert (site.edits, site.bans, site.watches) == (1, 2, 1)
            assert (checked, worked_out) == ([tiny.FIRST_SITE],) * 2, "the second time it is known"
