"""The clients' methods for policies, there and back over a socket."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import saegis
from saegis.v1 import generation_pb2, steering_pb2
from saegis.v1 import policy_pb2 as pb
from tests.client.conftest import Caller
from tests.client.loopback import Loopback
from tests.client.messages import fill, plain, receipt

TIME = datetime(2026, 11, 24, 12, 30, 15, 250000, tzinfo=UTC)


def revision(name: str) -> pb.PolicyRevision:
    made = pb.PolicyRevision()
    fill(made)
    put_time = Timestamp()
    put_time.FromDatetime(TIME)
    made.put_time.CopyFrom(put_time)
    made.name = name
    return made


def state() -> pb.PolicyState:
    return pb.PolicyState(
        active=revision("a"), shadow=revision("b"), etag="e1", description="words", rules=["one", "two"]
    )


def told(message: Any) -> Any:
    """What `asdict` of a result should be, its times included."""
    made = plain(message)

    def with_times(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"seconds", "nanos"}:
                return TIME
            return {key: with_times(each) for key, each in value.items()}
        return tuple(map(with_times, value)) if isinstance(value, tuple) else value

    return with_times(made)


def test_get_policy(loopback: Loopback, call: Caller) -> None:
    answer = loopback.answers["GetPolicy"] = pb.GetPolicyResponse(policy=state(), bundle=b"\x00tar")
    result = call("get_policy", "harm", include_bundle=True)
    assert isinstance(result, saegis.Policy)
    assert asdict(result) == told(answer)
    assert loopback.received[0].request == pb.GetPolicyRequest(name="harm", include_bundle=True)


def test_a_policy_without_a_candidate(loopback: Loopback, call: Caller) -> None:
    loopback.answers["GetPolicy"] = pb.GetPolicyResponse(policy=pb.PolicyState(active=revision("a")))
    assert call("get_policy", "harm").policy.shadow is None


def test_list_policies(loopback: Loopback, call: Caller) -> None:
    answer = pb.ListPoliciesResponse(policies=[state(), state()], policy_revision="a@1,b@2")
    loopback.answers["ListPolicies"] = answer
    result = call("list_policies")
    assert isinstance(result, saegis.PolicyList)
    assert asdict(result) == told(answer)


def test_policy_revisions(loopback: Loopback, call: Caller) -> None:
    answer = pb.ListPolicyRevisionsResponse(revisions=[revision("a"), revision("a")])
    loopback.answers["ListPolicyRevisions"] = answer
    result = call("policy_revisions", "a")
    assert tuple(map(asdict, result)) == told(answer)["revisions"]
    assert result[0].put_time == TIME
    assert loopback.received[0].request.name == "a"


def test_validate_policy(loopback: Loopback, call: Caller) -> None:
    answer = pb.ValidatePolicyResponse()
    fill(answer)
    answer.revision.CopyFrom(revision("a"))
    answer.revision.ClearField("put_time")
    answer.replaces.CopyFrom(state())
    loopback.answers["ValidatePolicy"] = answer
    result = call("validate_policy", b"tar")
    assert isinstance(result, saegis.Validation)
    expected = told(answer)
    assert asdict(result) == {**expected, "changes": expected["changes"]["changes"]}
    assert result.revision is not None
    assert result.revision.put_time is None
    assert loopback.received[0].request.bundle == b"tar"
    loopback.answers["ValidatePolicy"] = pb.ValidatePolicyResponse()
    assert call("validate_policy", b"tar") == saegis.Validation(False, (), None, ())


def test_evaluate_policy(loopback: Loopback, call: Caller) -> None:
    answer = pb.EvaluatePolicyResponse()
    fill(answer)
    loopback.answers["EvaluatePolicy"] = answer
    result = call("evaluate_policy", [saegis.clamp(3, 2.0)], tenant="t", roles=["use"], bundle=b"tar")
    assert isinstance(result, saegis.Decision)
    assert asdict(result) == told(answer.decision)
    assert result.rules[0].mode is saegis.RuleMode.ENFORCE
    edit = steering_pb2.Edit(
        operation=steering_pb2.OPERATION_CLAMP, feature=steering_pb2.FeatureRef(index=3), value=2.0
    )
    assert loopback.received[0].request == pb.EvaluatePolicyRequest(
        tenant="t", roles=["use"], bundle=b"tar", steering=steering_pb2.Steering(edits=[edit])
    )
    call("evaluate_policy")
    assert loopback.received[1].request == pb.EvaluatePolicyRequest()
    with pytest.raises(TypeError, match="single string"):
        call("evaluate_policy", roles="use")


def test_put_and_roll_back(loopback: Loopback, call: Caller) -> None:
    loopback.answers["PutPolicy"] = pb.PutPolicyResponse(policy=state())
    loopback.answers["RollBackPolicy"] = pb.RollBackPolicyResponse(policy=state())
    put = call("put_policy", b"tar", etag="e0", shadow=True)
    back = call("roll_back_policy", "harm", "0123abcd", etag="e1")
    for result in (put, back):
        assert isinstance(result, saegis.PolicyState)
        assert asdict(result) == told(state())
    assert [each.request for each in loopback.received] == [
        pb.PutPolicyRequest(bundle=b"tar", etag="e0", shadow=True),
        pb.RollBackPolicyRequest(name="harm", digest="0123abcd", etag="e1"),
    ]


def test_an_unknown_mode_breaks_the_contract(loopback: Loopback, call: Caller) -> None:
    unknown = pb.PolicyDecision(rules=[pb.AppliedRule(mode=77)])  # type: ignore[arg-type]
    loopback.answers["EvaluatePolicy"] = pb.EvaluatePolicyResponse(decision=unknown)
    with pytest.raises(saegis.InternalError, match="unknown mode 77"):
        call("evaluate_policy")


def test_receipts_name_rules(loopback: Loopback, call: Caller) -> None:
    message = generation_pb2.ScoreResponse(
        token_ids=[1, 2], logprobs=[0.0], plain_logprobs=[0.0], divergences=[0.0], receipt=receipt()
    )
    loopback.answers["Score"] = message
    found = call("score", "x").receipt
    assert found.ruled
    assert found.decision_id == message.receipt.decision_id
    assert [each.rule for each in found.rules] == [each.rule for each in message.receipt.rules]
