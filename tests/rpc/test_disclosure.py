"""What each caller learns of policies, by role, tenant and transparency; and that guessing finds no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from saegis.bundles import write_archive
from saegis.v1 import feature_pb2, feature_pb2_grpc, generation_pb2_grpc, policy_pb2_grpc, prompt_pb2
from saegis.v1 import generation_pb2 as gpb
from saegis.v1 import policy_pb2 as pb
from saegis.v1 import steering_pb2 as spb
from tests.rpc import tiny
from tests.rpc.callers import bearer, by_token
from tests.rpc.harness import Failure, Running, failure, running

Code = grpc.StatusCode
#: Feature 3 is banned and 5 capped in each; 12 is free, and nothing may be done to 20.
POLICY = """\
apiVersion: saegis.dev/v1
kind: Policy
name: {name}
serial: 1
revision: r1
description: about the bridge
transparency: {transparency}
match: {{tenants: [{tenant}]}}
rules:
  - {{id: ban-bridge, reason: no bridges, ban: {{features: [{{sae: first, index: 3}}], strength: 2}}}}
  - {{id: cap-river, cap: {{features: [{{sae: first, index: 5}}], value: 1}}}}
  - {{id: noted, mode: audit, ban: {{features: [{{sae: first, index: 12}}]}}}}
allow:
  - {{id: style, ops: [clamp, ban], features: [{{sae: first, indices: [3, 5, 12]}}]}}
"""
#: Tenant by policy; each has its policy in another transparency.
TENANTS = {"open": "labels", "quiet": "steered"}
ROLES = {
    "app": "use, steer",
    "inspector": "use, steer, inspect",
    "admin": "use, steer, inspect, administer",
}
PROMPT = prompt_pb2.Chat(
    messages=[prompt_pb2.ChatMessage(role="user", content="the red bridge over the river")]
)
#: What tells of the rules above, in whatever answer.
SECRETS = ("ban-bridge", "cap-river", "noted", "no bridges", "about the bridge", "the red bridge", "style")


def token(role: str, tenant: str) -> str:
    return f"saegis_{role}_{tenant}"


@dataclass(frozen=True)
class Caller:
    """A principal's calls."""

    channel: grpc.Channel
    role: str
    tenant: str

    def __call__(self, service: type[Any], method: str, request: Any) -> Any:
        return getattr(service(self.channel), method)(request, metadata=bearer(token(self.role, self.tenant)))

    def policies(self, method: str, request: Any) -> Any:
        return self(policy_pb2_grpc.PolicyServiceStub, method, request)

    def generate(self, *edits: spb.Edit, **fields: Any) -> gpb.GenerateResponse:
        watches = fields.pop("watches", ())
        sampling = gpb.SamplingParams(temperature=0.0, max_tokens=4)
        request = gpb.GenerateRequest(
            chat=fields.pop("chat", PROMPT),
            sampling=sampling,
            steering=spb.Steering(edits=edits, watches=watches),
            **fields,
        )
        found: gpb.GenerateResponse = self(generation_pb2_grpc.GenerationServiceStub, "Generate", request)
        return found

    def denied(self, *edits: spb.Edit, **fields: Any) -> Failure:
        found = failure(lambda: self.generate(*edits, **fields))
        assert (found.code, found.reason) == (Code.PERMISSION_DENIED, "POLICY_DENIED")
        return found


def edit(index: int, operation: Any = spb.OPERATION_CLAMP, value: float = 0.5) -> spb.Edit:
    feature = spb.FeatureRef(sae="first", index=index)
    return spb.Edit(operation=operation, value=value, feature=feature)


def bundle(tenant: str, **changed: str) -> bytes:
    said = {
        "name": f"of-{tenant}",
        "tenant": tenant,
        "transparency": TENANTS.get(tenant, "labels"),
        **changed,
    }
    return write_archive({"policy.yaml": POLICY.format(**said).encode()})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("disclosure")
    lines = ["apiVersion: saegis.dev/v1", "kind: Identities", "principals:"]
    for tenant in TENANTS:
        for role, roles in ROLES.items():
            name = f"{role}-{tenant}"
            lines.append(
                f"  - {{name: {name}, tenant: {tenant}, roles: [{roles}], {by_token(token(role, tenant))}}}"
            )
        (folder / f"{tenant}.tar.gz").write_bytes(bundle(tenant))
    (folder / "identities.yaml").write_text("\n".join(lines))
    settings: dict[str, Any] = {
        "identities": str(folder / "identities.yaml"),
        "policies": {"bundles": [str(folder / f"{tenant}.tar.gz") for tenant in TENANTS]},
        "audit": {"directory": str(folder / "audit"), "fsync": "never"},
    }
    with running(max_num_seqs=4, **settings) as made:
        yield made


@pytest.fixture
def caller(server: Running) -> Iterator[Callable[[str, str], Caller]]:
    with grpc.insecure_channel(server.target) as channel:
        yield lambda role, tenant: Caller(channel, role, tenant)


Callers = Callable[[str, str], Caller]


def refusal(me: Caller, method: str, request: Any) -> Failure:
    return failure(lambda: me.policies(method, request))


def leaks(message: Any) -> set[str]:
    """The secrets that an answer or a failure tells."""
    text = (
        str([message.message, message.details])
        if isinstance(message, Failure)
        else json.dumps(MessageToDict(message))
    )
    return {secret for secret in SECRETS if secret in text}


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("role", ROLES)
def test_what_each_caller_learns(caller: Callers, role: str, tenant: str) -> None:
    me, other = caller(role, tenant), next(each for each in TENANTS if each != tenant)
    reads = role == "admin" or TENANTS[tenant] == "labels"
    # A receipt is for whoever the answer is shown to.
    answer = me.generate(edit(5))
    assert answer.receipt.ruled
    assert answer.receipt.policy_revision == f"of-{tenant}@r1"
    assert bool(leaks(answer)) is (TENANTS[tenant] == "labels")
    # A denial of what is banned, and of what no allowance covers.
    for index, rule in ((3, "ban-bridge"), (20, "allow")):
        found = me.denied(edit(index))
        assert found.fields == ["steering.edits[0]"]
        told = dict(found.details["ErrorInfo"].metadata)
        assert told.get("rule") == (rule if reads else None)
        assert bool(leaks(found) & {"ban-bridge"}) is (reads and index == 3)
    if role == "app":
        found = failure(lambda: me.policies("GetPolicy", pb.GetPolicyRequest(name=f"of-{tenant}")))
        assert found.reason == "ROLE_MISSING"
        return
    # The policies themselves.
    listed = me.policies("ListPolicies", pb.ListPoliciesRequest())
    known = sorted(f"of-{each}" for each in (TENANTS if role == "admin" else (tenant,)))
    assert [each.active.name for each in listed.policies] == known
    assert listed.policy_revision == ",".join(f"{name}@r1" for name in known)
    own = me.policies("GetPolicy", pb.GetPolicyRequest(name=f"of-{tenant}"))
    assert bool(leaks(own)) is bool(own.policy.rules) is bool(own.policy.description) is reads
    with_bundle = pb.GetPolicyRequest(name=f"of-{tenant}", include_bundle=True)
    if reads:
        assert me.policies("GetPolicy", with_bundle).bundle == bundle(tenant)
    else:
        found = failure(lambda: me.policies("GetPolicy", with_bundle))
        assert (found.reason, found.fields) == ("ROLE_MISSING", ["include_bundle"])
    assert me.policies("ListPolicyRevisions", pb.ListPolicyRevisionsRequest(name=f"of-{tenant}")).revisions
    # What would be decided.
    for edits in ([], [edit(3)], [edit(20)]):
        request = pb.EvaluatePolicyRequest(steering=spb.Steering(edits=edits))
        decision = me.policies("EvaluatePolicy", request).decision
        assert decision.allowed is (not edits)
        assert bool(decision.rules) is bool(leaks(decision)) is reads
        assert bool(decision.program_digest) is (reads and decision.allowed)
    # Another tenant's.
    evaluated = pb.EvaluatePolicyRequest(tenant=other)
    named: tuple[tuple[str, Any], ...] = (
        ("GetPolicy", pb.GetPolicyRequest(name=f"of-{other}", include_bundle=True)),
        ("ListPolicyRevisions", pb.ListPolicyRevisionsRequest(name=f"of-{other}")),
    )
    if role == "admin":
        assert me.policies("EvaluatePolicy", evaluated).decision.policy_revision == f"of-{other}@r1"
        assert all(me.policies(method, request) for method, request in named)
        return
    found = failure(lambda: me.policies("EvaluatePolicy", evaluated))
    assert (found.reason, found.fields) == ("ROLE_MISSING", ["tenant"])
    for method, request in named:
        found = refusal(me, method, request)
        absent = refusal(me, method, type(request)(name="absent"))
        assert (found.code, found.reason) == (Code.NOT_FOUND, "POLICY_NOT_FOUND")
        assert found.message.replace(f"of-{other}", "absent") == absent.message


def test_nobody_asks_in_roles_that_it_lacks(caller: Callers) -> None:
    request = pb.EvaluatePolicyRequest(roles=["use", "operate"])
    found = failure(lambda: caller("inspector", "open").policies("EvaluatePolicy", request))
    assert (found.reason, found.fields) == ("ROLE_MISSING", ["roles"])
    assert caller("inspector", "open").policies("EvaluatePolicy", pb.EvaluatePolicyRequest(roles=["use"]))


def test_a_ban_of_what_is_banned_looks_like_any_other_ban(caller: Callers, server: Running) -> None:
    """By raised counts and by the program's digest it was seen which features were banned already."""
    me = caller("app", "quiet")
    answers = [me.generate(edit(index, spb.OPERATION_BAN, 0.0)) for index in (3, 12)]
    receipts = [answer.receipt for answer in answers]
    assert receipts[0].decision_id != receipts[1].decision_id
    for receipt, answer in zip(receipts, answers, strict=True):
        (site,) = receipt.sites
        assert (site.site, site.edits, receipt.program_digest) == (str(tiny.FIRST_SITE), 0, "")
        counts = ("rules", "bans", "tokens_edited", "bans_fired")
        for name in (*counts, "largest_relative_norm", "mean_relative_norm"):
            assert not site.HasField(name)
        assert not answer.usage.HasField("steered_tokens")
        assert not receipt.edits
    assert list(receipts[0].sites) == list(receipts[1].sites)
    # The operator finds all of it by the decision.
    assert server.config.audit is not None
    lines = (server.config.audit.directory / "audit.jsonl").read_text().splitlines()
    records = {each["decision_id"]: each for each in map(json.loads, lines) if each["kind"] == "answer"}
    found = [records[receipt.decision_id] for receipt in receipts]
    assert [each["sites"][0]["bans"] for each in found] == [1, 2]
    assert found[0]["program_digest"] != found[1]["program_digest"]


def test_a_denial_tells_no_more_than_the_field(caller: Callers) -> None:
    """Whether a feature is banned, not allowed, or both, and in which order the edits are judged."""
    me = caller("app", "quiet")

    def shape(*edits: spb.Edit) -> Any:
        found = me.denied(*edits)
        told = dict(found.details["ErrorInfo"].metadata)
        told.pop("decision_id")
        violations = found.details["BadRequest"].field_violations
        return found.message, told, [(each.field, each.description) for each in violations]

    banned, unknown = shape(edit(3)), shape(edit(20))
    assert (
        banned
        == unknown
        == (
            "the operator's policy denies the request",
            {},
            [("steering.edits[0]", "is not allowed")],
        )
    )
    both = [shape(edit(3), edit(20)), shape(edit(20), edit(3))]
    assert both[0] == both[1]
    assert [field for field, _ in both[0][2]] == ["steering.edits[0]", "steering.edits[1]"]


def test_the_clean_activation_is_not_read_by_watches(caller: Callers) -> None:
    """All its coordinates were read in three requests, and which features are ruled by before and after."""
    axes = [[float(place == axis) for place in range(tiny.WIDTH)] for axis in range(8)]
    watches = [spb.Watch(direction=spb.Direction(values=axis), site=str(tiny.FIRST_SITE)) for axis in axes]
    for tenant in TENANTS:
        found = caller("app", tenant).denied(watches=watches)
        assert found.fields == [f"steering.watches[{place}]" for place in range(8)]
        feature = spb.Watch(feature=spb.FeatureRef(sae="first", index=3))
        assert caller("app", tenant).denied(watches=[feature]).fields == ["steering.watches[0]"]


def asked(**fields: Any) -> Callable[[Caller], Any]:
    """A request of Generate that goes beyond the ordinary."""

    def ask(me: Caller) -> Any:
        fields.setdefault("chat", None if {"text", "token_ids"} & fields.keys() else PROMPT)
        request = gpb.GenerateRequest(**{key: value for key, value in fields.items() if value is not None})
        return me(generation_pb2_grpc.GenerationServiceStub, "Generate", request)

    return ask


def inspected(me: Caller) -> Any:
    return me(
        feature_pb2_grpc.FeatureServiceStub, "Inspect", feature_pb2.InspectRequest(text="x", sae="first")
    )


def contrasted(me: Caller) -> Any:
    request = feature_pb2.ContrastFeaturesRequest(positive_texts=["x"], negative_texts=["y"], sae="first")
    return me(feature_pb2_grpc.FeatureServiceStub, "ContrastFeatures", request)


def scored(me: Caller) -> Any:
    return me(generation_pb2_grpc.GenerationServiceStub, "Score", gpb.ScoreRequest(chat=PROMPT))


_PREFILLED = [*PROMPT.messages, prompt_pb2.ChatMessage(role="assistant", content="Sure,")]
BEYOND = {
    "text": (asked(text="x"), "text"),
    "token_ids": (asked(token_ids=prompt_pb2.TokenIds(ids=[5, 6])), "token_ids"),
    "prefill": (asked(chat=prompt_pb2.Chat(messages=_PREFILLED)), "chat.messages[1]"),
    "n": (asked(sampling=gpb.SamplingParams(n=2, max_tokens=2)), "sampling.n"),
    "temperature": (
        asked(sampling=gpb.SamplingParams(temperature=1.01, max_tokens=2)),
        "sampling.temperature",
    ),
    "logit_bias": (asked(sampling=gpb.SamplingParams(logit_bias={3: 1.0})), "sampling.logit_bias"),
    "score": (scored, None),
    "inspect": (inspected, None),
    "contrast": (contrasted, None),
}


@pytest.mark.parametrize("word", BEYOND)
def test_what_goes_beyond_the_ordinary_is_denied_with_its_field(caller: Callers, word: str) -> None:
    ask, field = BEYOND[word]
    for tenant, transparency in TENANTS.items():
        found = failure(partial(ask, caller("inspector", tenant)))
        assert (found.code, found.reason) == (Code.PERMISSION_DENIED, "POLICY_DENIED")
        assert ("use" in found.message) is (transparency == "labels")
        if field is not None:
            assert found.fields == [field]


def test_the_words_let_it_through(tmp_path: Path) -> None:
    words = ", ".join(word for word in (*BEYOND,) if word != "contrast")
    text = POLICY.format(name="wide", tenant="default", transparency="labels") + (
        f"  - {{id: words, uses: [{words}]}}\n  - {{id: see, ops: [watch]}}\n"
    )
    (tmp_path / "wide.tar.gz").write_bytes(write_archive({"policy.yaml": text.encode()}))
    policies = {"bundles": [str(tmp_path / "wide.tar.gz")]}
    audit = {"directory": str(tmp_path / "audit"), "fsync": "never"}
    with running(policies=policies, audit=audit) as server, grpc.insecure_channel(server.target) as channel:
        me = Caller(channel, "", "")
        for ask, _ in BEYOND.values():
            ask(me)
        feature = spb.Watch(feature=spb.FeatureRef(sae="first", index=3))
        (choice,) = me.generate(watches=[feature]).choices
        assert max(choice.watched[0].after) == 0.0
        request = pb.EvaluatePolicyRequest(
            uses=[pb.RequestedUse(word="n", value=9), pb.RequestedUse(word="text")]
        )
        assert me.policies("EvaluatePolicy", request).decision.allowed
        request = pb.EvaluatePolicyRequest(uses=[pb.RequestedUse(word="unruled")])
        assert [each.field for each in me.policies("EvaluatePolicy", request).decision.denials] == ["uses[0]"]
        for wrong, path in (
            ({"word": "txt"}, "word"),
            ({"word": "n"}, "value"),
            ({"word": "text", "value": 1}, "value"),
        ):
            request = pb.EvaluatePolicyRequest(uses=[pb.RequestedUse(**wrong)])
            found = refusal(me, "EvaluatePolicy", request)
            assert found.fields == [f"uses[0].{path}"]
    records = map(json.loads, (tmp_path / "audit/audit.jsonl").read_text().splitlines())
    uses = {use["use"] for each in records if each["kind"] == "decision" for use in each["uses"]}
    assert uses == {word for word in BEYOND if word != "contrast"}


def test_a_bundle_is_not_held_against_what_its_author_may_not_read(caller: Callers) -> None:
    """By the conflicts of bundles made to order the rules of another tenant's policy could be read."""
    cap, clash = "cap-river, cap: {", "clash, cap: {unit: norm_fraction, "

    def problems(role: str, of: str, about: str) -> list[str]:
        text = POLICY.format(name="mine", tenant=about, transparency="labels").replace(cap, clash)
        archive = write_archive({"policy.yaml": text.encode()})
        request = pb.ValidatePolicyRequest(bundle=archive)
        return [each.message for each in caller(role, of).policies("ValidatePolicy", request).problems]

    def told(*names: str, found: list[str]) -> bool:
        return any(name in message for name in names for message in found)

    assert told("of-open", found=problems("inspector", "open", "open"))
    assert not told("of-quiet", found=problems("inspector", "open", "quiet"))
    assert not told("of-quiet", found=problems("inspector", "quiet", "quiet"))
    assert told("of-quiet", found=problems("admin", "open", "quiet"))
    # Nor is it told which serials another tenant's policy had.
    stale = pb.ValidatePolicyRequest(bundle=bundle("quiet", transparency="labels"))
    assert not any(
        "serial" in each.path
        for each in caller("inspector", "open").policies("ValidatePolicy", stale).problems
    )
    assert any(
        "serial" in each.path for each in caller("admin", "open").policies("ValidatePolicy", stale).problems
    )


def test_what_a_bundle_changes_is_told_to_those_who_may_read_what_is_in_force(caller: Callers) -> None:
    def told(role: str, of: str, about: str) -> tuple[str, list[str] | None]:
        """The etag of what it replaces, and the keys that change."""
        request = pb.ValidatePolicyRequest(bundle=bundle(about, transparency="labels"))
        found = caller(role, of).policies("ValidatePolicy", request)
        keys = [each.key for each in found.changes.changes] if found.HasField("changes") else None
        return found.replaces.etag, keys

    def etag(name: str) -> str:
        found = caller("admin", "open").policies("GetPolicy", pb.GetPolicyRequest(name=name))
        return str(found.policy.etag)

    assert told("inspector", "open", "open") == (etag("of-open"), [])
    assert told("admin", "open", "quiet") == (etag("of-quiet"), ["transparency"])
    # Its own tenant's, of which it knows no more than that it is in force.
    assert told("inspector", "quiet", "quiet") == (etag("of-quiet"), None)
    # Another tenant's is as one that is not there: everything is new.
    unknown, keys = told("inspector", "open", "quiet")
    assert unknown == ""
    assert keys == ["allow.style", "rules.ban-bridge", "rules.cap-river", "rules.noted"]


def test_an_earlier_revision_is_told_to_those_who_may_read_it_and_what_is_in_force(caller: Callers) -> None:
    """One that concealed its rules, or was another tenant's, stays so for all but who administers."""
    admin, inspector = caller("admin", "open"), caller("inspector", "open")
    digests = {}
    for serial, (name, changed) in enumerate(
        (
            ("concealed", {"tenant": "open", "transparency": "steered"}),
            ("another's", {"tenant": "quiet", "transparency": "labels"}),
            ("read", {"tenant": "open", "transparency": "labels"}),
            ("in force", {"tenant": "open", "transparency": "labels"}),
        ),
        1,
    ):
        said = {"name": "earlier", **changed}
        archive = write_archive(
            {"policy.yaml": POLICY.format(**said).replace("serial: 1", f"serial: {serial}").encode()}
        )
        state = put_earlier(admin, archive)
        digests[name] = state.active.digest
    for name, digest in digests.items():
        request = pb.GetPolicyRequest(name="earlier", include_bundle=True, digest=digest)
        assert admin.policies("GetPolicy", request).bundle
        if name in ("read", "in force"):
            assert inspector.policies("GetPolicy", request).bundle
        else:
            found = failure(partial(inspector.policies, "GetPolicy", request))
            assert (found.code, found.reason) == (Code.PERMISSION_DENIED, "ROLE_MISSING")
            assert not any(secret in found.message for secret in SECRETS)


def put_earlier(admin: Caller, archive: bytes) -> pb.PolicyState:
    """Put a bundle in the place of the policy of its name, if there is one."""
    known = {
        each.active.name: each.etag
        for each in admin.policies("ListPolicies", pb.ListPoliciesRequest()).policies
    }
    request = pb.PutPolicyRequest(bundle=archive, etag=known.get("earlier", ""))
    found: pb.PolicyState = admin.policies("PutPolicy", request).policy
    return found
