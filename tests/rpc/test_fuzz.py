"""Mutated and random bytes for every method: each gets an answer or a proper status, and nothing breaks."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saegis.v1 import feature_pb2, generation_pb2, model_pb2, prompt_pb2, steering_pb2
from tests.rpc.conftest import Stubs

_GENERATE = generation_pb2.GenerateRequest(
    text="the river",
    request_id="mutant",
    sampling=generation_pb2.SamplingParams(
        max_tokens=2, n=2, logprobs=1, stop=["x"], logit_bias={3: 1.0}, seed=1
    ),
    steering=steering_pb2.Steering(
        edits=[
            steering_pb2.Edit(
                operation=steering_pb2.OPERATION_CLAMP,
                feature=steering_pb2.FeatureRef(sae="first", index=3),
                value=1.0,
                unit=steering_pb2.UNIT_MAX_ACTIVATION,
                phase=steering_pb2.PHASE_PROMPT,
            ),
            steering_pb2.Edit(
                operation=steering_pb2.OPERATION_REDIRECT,
                feature=steering_pb2.FeatureRef(sae="first", index=4),
                value=1.0,
                redirect=steering_pb2.Redirection(
                    feature=steering_pb2.FeatureRef(sae="first", index=5), strength=1.0, threshold=0.5
                ),
            ),
        ],
        watches=[steering_pb2.Watch(feature=steering_pb2.FeatureRef(sae="first", label="a river"))],
    ),
)
_CHAT = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="x")])
SEEDS: dict[str, Message] = {
    "GenerationService/Generate": _GENERATE,
    "GenerationService/Score": generation_pb2.ScoreRequest(
        chat=_CHAT, request_id="mutant", steering=steering_pb2.Steering(edits=_GENERATE.steering.edits)
    ),
    "FeatureService/Inspect": feature_pb2.InspectRequest(chat=_CHAT, sae="first", top_k=2),
    "FeatureService/GetFeature": feature_pb2.GetFeatureRequest(
        feature=steering_pb2.FeatureRef(sae="first", index=3)
    ),
    "FeatureService/SearchFeatures": feature_pb2.SearchFeaturesRequest(
        query="red", page_size=2, page_token="3-ab"
    ),
    "FeatureService/ContrastFeatures": feature_pb2.ContrastFeaturesRequest(
        positive_texts=["a"], negative_texts=["b"], sae="first", limit=2
    ),
    "ModelService/Tokenize": model_pb2.TokenizeRequest(text="a"),
    "ModelService/Detokenize": model_pb2.DetokenizeRequest(token_ids=[3, 4]),
}
#: What no request may bring about.
BROKEN = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)


def mutated(data: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """Bytes replaced, inserted or removed."""
    found = bytearray(data)
    for kind, place, value in changes:
        where = place % (len(found) + 1)
        if kind == 0 and where < len(found):
            found[where] = value
        elif kind == 1:
            found.insert(where, value)
        else:
            del found[where : where + 1]
    return bytes(found)


@pytest.mark.parametrize("method", SEEDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 200), st.integers(0, 255)), max_size=4),
    noise=st.none() | st.binary(max_size=40),
)
def test_no_bytes_break_the_server(
    stubs: Stubs, method: str, changes: list[tuple[int, int, int]], noise: bytes | None
) -> None:
    data = mutated(SEEDS[method].SerializeToString(), changes) if noise is None else noise
    call: Any = stubs.channel.unary_unary(f"/saegis.v1.{method}")
    code = grpc.StatusCode.OK
    try:
        call(data, timeout=2.0)
    except grpc.RpcError as error:
        code = error.code()
    assert code not in BROKEN
