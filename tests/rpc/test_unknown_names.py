"""What a request names and what does not exist is NOT_FOUND, in every RPC and every field that names it."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from saegis.v1 import direction_pb2, feature_pb2, generation_pb2, model_pb2, policy_pb2, steering_pb2
from tests.policy import made
from tests.rpc import tiny
from tests.rpc.harness import failure, running

SERVICES = {
    service.full_name: service
    for file in (direction_pb2, feature_pb2, generation_pb2, model_pb2, policy_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
#: The fields that name something, of one message or wherever they stand, with what does not exist.
UNKNOWN: dict[str, Any] = {
    "sae": "third",
    "site": "layers.9.resid_post",
    "FeatureRef.index": 48,
    "FeatureRef.label": "unheard of",
    "GetPolicyRequest.name": "unheard-of",
    "GetPolicyRequest.digest": "0" * 64,
    "ListPolicyRevisionsRequest.name": "unheard-of",
    "RollBackPolicyRequest.name": "unheard-of",
    "RollBackPolicyRequest.digest": "0" * 64,
    "Direction.name": "unheard-of",
    "Direction.digest": "0" * 64,
    "DeleteDirectionRequest.name": "unheard-of",
    "DeleteDirectionRequest.digest": "0" * 64,
}
REASONS = {
    "sae": "SAE_NOT_FOUND",
    "site": "SITE_NOT_FOUND",
    "FeatureRef.index": "FEATURE_NOT_FOUND",
    "FeatureRef.label": "FEATURE_NOT_FOUND",
    "GetPolicyRequest.name": "POLICY_NOT_FOUND",
    "GetPolicyRequest.digest": "REVISION_NOT_FOUND",
    "ListPolicyRevisionsRequest.name": "POLICY_NOT_FOUND",
    "RollBackPolicyRequest.name": "POLICY_NOT_FOUND",
    "RollBackPolicyRequest.digest": "REVISION_NOT_FOUND",
    "Direction.name": "DIRECTION_NOT_FOUND",
    "Direction.digest": "DIRECTION_NOT_FOUND",
    "DeleteDirectionRequest.name": "DIRECTION_NOT_FOUND",
    "DeleteDirectionRequest.digest": "DIRECTION_NOT_FOUND",
}
_FEATURE = steering_pb2.FeatureRef(sae="first", index=3)
_STEERING = steering_pb2.Steering(
    edits=[
        steering_pb2.Edit(
            operation=steering_pb2.OPERATION_CLAMP, feature=_FEATURE, site=str(tiny.FIRST_SITE), value=1.0
        )
    ],
    watches=[steering_pb2.Watch(feature=_FEATURE, site=str(tiny.FIRST_SITE))],
)
_SAMPLING = generation_pb2.SamplingParams(max_tokens=1)
_GENERATE = generation_pb2.GenerateRequest(text="the river", sampling=_SAMPLING, steering=_STEERING)
#: A request of each method whose requests can name something, which is answered as it stands.
RIGHT: dict[str, Message] = {
    "GenerationService/Generate": _GENERATE,
    "GenerationService/StreamGenerate": generation_pb2.StreamGenerateRequest(request=_GENERATE),
    "GenerationService/Score": generation_pb2.ScoreRequest(
        text="the river", steering=steering_pb2.Steering(edits=_STEERING.edits)
    ),
    "FeatureService/Inspect": feature_pb2.InspectRequest(
        text="x", sae="first", site=str(tiny.FIRST_SITE), features=[_FEATURE]
    ),
    "FeatureService/GetFeature": feature_pb2.GetFeatureRequest(feature=_FEATURE),
    "FeatureService/SearchFeatures": feature_pb2.SearchFeaturesRequest(query="red", sae="first"),
    "FeatureService/ContrastFeatures": feature_pb2.ContrastFeaturesRequest(
        positive_texts=["a"], negative_texts=["b"], sae="first"
    ),
    "FeatureService/GetFeatureUsage": feature_pb2.GetFeatureUsageRequest(sae="first"),
    "PolicyService/EvaluatePolicy": policy_pb2.EvaluatePolicyRequest(steering=_STEERING),
    "PolicyService/GetPolicy": policy_pb2.GetPolicyRequest(name="harm", include_bundle=True),
    "PolicyService/ListPolicyRevisions": policy_pb2.ListPolicyRevisionsRequest(name="harm"),
    "PolicyService/RollBackPolicy": policy_pb2.RollBackPolicyRequest(name="harm", digest="", etag=""),
    "DirectionService/UploadDirection": direction_pb2.UploadDirectionRequest(
        values=[1.0] * tiny.WIDTH, site=str(tiny.FIRST_SITE)
    ),
    "DirectionService/DeleteDirection": direction_pb2.DeleteDirectionRequest(),
}


def named(field: FieldDescriptor) -> str | None:
    """The row of UNKNOWN that a field is of; None for a field that names nothing."""
    own = f"{field.containing_type.name if field.containing_type else ''}.{field.name}"
    return own if own in UNKNOWN else field.name if field.name in UNKNOWN else None


def places(kind: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all fields of a message that name something."""
    for field in kind.fields:
        if field.message_type is not None:
            yield from places(field.message_type, (*path, field.name))
        elif named(field):
            yield (*path, field.name)


CASES = [
    (f"{service.name}/{method.name}", path)
    for service in SERVICES.values()
    for method in service.methods
    for path in places(method.input_type)
    # A score takes no watches, whatever they name.
    if not (method.name == "Score" and "watches" in path)
]


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    """A channel to a server with one policy, which asks for nothing."""
    state = tmp_path_factory.mktemp("state")
    with (
        running(policies={"state": str(state)}) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        put: Any = channel.unary_unary(f"/{policy_pb2.DESCRIPTOR.package}.PolicyService/PutPolicy")
        put(policy_pb2.PutPolicyRequest(bundle=made.archive(1)).SerializeToString())
        yield channel


def test_every_field_that_names_something_is_in_a_request() -> None:
    assert {method for method, _ in CASES} == set(RIGHT)
    assert set(REASONS) == set(UNKNOWN)


@pytest.mark.parametrize(
    ("method", "path"), CASES, ids=[f"{method}-{'.'.join(path)}" for method, path in CASES]
)
def test_what_does_not_exist_is_not_found(channel: grpc.Channel, method: str, path: tuple[str, ...]) -> None:
    request = type(RIGHT[method])()
    request.CopyFrom(RIGHT[method])
    holder: Any = request
    told = []
    for step in path[:-1]:
        holder = getattr(holder, step)
        if not isinstance(holder, Message):
            holder, step = holder[0], f"{step}[0]"
        told.append(step)
    row = named(holder.DESCRIPTOR.fields_by_name[path[-1]])
    assert row is not None
    if path == ("name",):
        request = type(request)(name=UNKNOWN[row])
    else:
        setattr(holder, path[-1], UNKNOWN[row])
    if method == "PolicyService/RollBackPolicy":
        _complete(channel, request)
    streams = method.endswith("StreamGenerate")
    make: Any = channel.unary_stream if streams else channel.unary_unary
    found = failure(lambda: make(f"/saegis.v1.{method}")(request.SerializeToString()))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, REASONS[row])
    assert str(UNKNOWN[row]) in found.details["ResourceInfo"].resource_name
    if "POLICY" not in REASONS[row] and "REVISION" not in REASONS[row]:
        # A stream's request stands within another message, and is told as if it stood alone.
        assert found.fields == [".".join([*told, path[-1]]).removeprefix("request.")]


def _complete(channel: grpc.Channel, request: Any) -> None:
    """Give a roll-back what it needs beside what is unknown."""
    get: Any = channel.unary_unary("/saegis.v1.PolicyService/GetPolicy")
    answer = get(policy_pb2.GetPolicyRequest(name="harm").SerializeToString())
    request.etag = policy_pb2.GetPolicyResponse.FromString(answer).policy.etag
    request.digest = request.digest or "0" * 64
