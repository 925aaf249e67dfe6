"""What one request may hold: refused by name before any work, and checked in one pass."""

import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import torch

from saegis.v1 import feature_pb2 as fpb
from saegis.v1 import generation_pb2 as pb
from saegis.v1 import model_pb2 as mpb
from saegis.v1 import prompt_pb2, steering_pb2
from saegis_server.rpc.server.intake import MOST_FIELDS, has_more_fields
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import failure, send_bytes

CAP = steering_pb2.Edit(
    feature=steering_pb2.FeatureRef(sae="first", index=3),
    operation=steering_pb2.OPERATION_CAP,
    value=2.0,
)
WATCH = steering_pb2.Watch(feature=steering_pb2.FeatureRef(sae="first", index=3))
#: What a generation is asked with, to protobuf.
KIND: Any = pb.GenerateRequest.DESCRIPTOR


def steered(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", steering=steering_pb2.Steering(**fields))


def sampled(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=1, **fields))


def chat(count: int) -> prompt_pb2.Chat:
    return prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="x")] * count)


#: A request by what is too much about it, and the field that is named.
TOO_MUCH: dict[str, tuple[Callable[[Stubs], Any], str]] = {
    "caps of one feature": (
        lambda stubs: stubs.generation.Generate(steered(edits=[CAP] * 3000)),
        "steering.edits",
    ),
    "watches": (
        lambda stubs: stubs.generation.Generate(steered(watches=[WATCH] * 3000)),
        "steering.watches",
    ),
    "biases": (
        lambda stubs: stubs.generation.Generate(sampled(logit_bias=dict.fromkeys(range(1025), 1.0), n=64)),
        "sampling.logit_bias",
    ),
    "stop tokens": (
        lambda stubs: stubs.generation.Generate(sampled(stop_token_ids=[1] * 1025)),
        "sampling.stop_token_ids",
    ),
    "stop strings": (lambda stubs: stubs.generation.Generate(sampled(stop=["x"] * 17)), "sampling.stop"),
    "messages": (
        lambda stubs: stubs.generation.Generate(pb.GenerateRequest(chat=chat(1025))),
        "chat.messages",
    ),
    "a text": (lambda stubs: stubs.generation.Generate(pb.GenerateRequest(text="x" * 70_000)), "text"),
    "a text to tokenize": (
        lambda stubs: stubs.models.Tokenize(mpb.TokenizeRequest(text="x" * 70_000)),
        "text",
    ),
    "tokens to read": (
        lambda stubs: stubs.models.Detokenize(mpb.DetokenizeRequest(token_ids=[1] * 70_000)),
        "token_ids",
    ),
    "a label": (
        lambda stubs: stubs.features.GetFeature(
            fpb.GetFeatureRequest(feature=steering_pb2.FeatureRef(sae="first", label="x" * 2000))
        ),
        "feature.label",
    ),
    "a search": (
        lambda stubs: stubs.features.SearchFeatures(fpb.SearchFeaturesRequest(query="x " * 33)),
        "query",
    ),
    "features told": (
        lambda stubs: stubs.features.Inspect(fpb.InspectRequest(text="x" * 1000, sae="first", top_k=1000)),
        "top_k",
    ),
    "features valued": (
        lambda stubs: stubs.features.Inspect(
            fpb.InspectRequest(text="x", sae="first", features=[steering_pb2.FeatureRef(index=1)] * 257)
        ),
        "features",
    ),
    "values told": (
        lambda stubs: stubs.features.Inspect(
            fpb.InspectRequest(
                text="x " * 4000,
                sae="first",
                top_k=0,
                features=[steering_pb2.FeatureRef(index=1)] * 256,
                long_text=True,
            )
        ),
        "features",
    ),
    "a long text": (
        lambda stubs: stubs.features.Inspect(
            fpb.InspectRequest(text="x" * 2_200_000, sae="first", top_k=1, long_text=True)
        ),
        "text",
    ),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_what_is_too_much_is_refused_at_once_and_by_name(stubs: Stubs, kind: str) -> None:
    send, field = TOO_MUCH[kind]
    began = time.monotonic()
    found = failure(lambda: send(stubs))
    assert time.monotonic() - began < 1.0
    assert (found.code, found.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert any(character.isdigit() for character in found.message), "it tells how much there may be"


def test_the_bounds_are_told(stubs: Stubs) -> None:
    limits = stubs.models.GetServerInfo(mpb.GetServerInfoRequest()).limits
    assert (limits.max_logit_bias, limits.max_stop_token_ids, limits.max_messages) == (1024, 1024, 1024)
    assert (limits.max_text_characters, limits.max_fields) == (65536, MOST_FIELDS)


def field_of(number: int, body: bytes) -> bytes:
    """A field of bytes, as it is sent."""
    length, size = b"", len(body)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + body


def test_two_million_empty_fields_are_refused_before_they_are_read(stubs: Stubs) -> None:
    message = field_of(6, field_of(1, b"") * 2_000_000)
    found = send_bytes(stubs.channel, "/saegis.v1.GenerationService/Generate", message)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert str(MOST_FIELDS) in found.message


def test_a_method_without_prompts_takes_small_messages_only(stubs: Stubs) -> None:
    found = send_bytes(stubs.channel, "/saegis.v1.ModelService/GetLoad", field_of(15, b"x" * 100_000))
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


def fields_within(message: Any) -> int:
    """How many fields a message has, by protobuf's own reading of it; packed lists are one."""
    count = 0
    for field, value in message.ListFields():
        repeated = field.is_repeated and not field.is_packed
        of_message = field.message_type is not None and not field.message_type.GetOptions().map_entry
        count += len(value) if repeated else 1
        for each in (value if repeated else [value]) if of_message else []:
            count += fields_within(each)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            count += 2 * len(value)
    return count


def test_fields_are_counted_as_protobuf_reads_them() -> None:
    message = steered(edits=[CAP] * 7, watches=[WATCH] * 3)
    message.sampling.CopyFrom(pb.SamplingParams(logit_bias={1: 2.0, 300: 1.0}, stop=["a", "b"], n=3, seed=-1))
    message.steering.edits.add().direction.values.extend([1.0] * 500)
    count = fields_within(message)
    data = message.SerializeToString()
    assert not has_more_fields(data, KIND, count)
    assert has_more_fields(data, KIND, count - 1)


def test_counting_ends_whatever_the_bytes() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        data = rng.randbytes(rng.randrange(60))
        assert not has_more_fields(data, KIND, 60)


def contradicts(edits: tuple[Edit, ...]) -> bool:
    """Whether any two contradict each other, each pair looked at."""
    for later, edit in enumerate(edits):
        for other in edits[:later]:
            together = edit.phase == other.phase or Phase.ALL in (edit.phase, other.phase)
            if edit.probe.key != other.probe.key or not together:
                continue
            bounds = all((each.a, each.b) == (1.0, 0.0) for each in (edit, other))
            room = max(edit.lo, other.lo) <= min(edit.hi, other.hi)
            if not (bounds and room and edit.relative_to_norm == other.relative_to_norm):
                return True
    return False


def test_contradictions_are_found_as_by_looking_at_every_pair() -> None:
    rng = random.Random(1)
    probes = [Probe.direction(torch.eye(4)[index]) for index in range(3)]
    infinity = float("inf")
    outcomes = []
    for _ in range(4000):
        edits = []
        for _ in range(rng.randrange(2, 6)):
            low, high = sorted(rng.choices((-infinity, 0.0, 1.0, 2.0, 3.0, infinity), k=2))
            is_bound = rng.random() < 0.9
            edits.append(
                Edit(
                    rng.choice(probes),
                    a=1.0 if is_bound else 0.0,
                    lo=low,
                    hi=high,
                    phase=rng.choice(list(Phase)),
                    relative_to_norm=rng.random() < 0.1,
                )
            )
        expected = contradicts(tuple(edits))
        outcomes.append(expected)
        sites = {tiny.FIRST_SITE: SiteProgram(edits=tuple(edits))}
        if not expected:
            SteeringProgram(sites)
            continue
        with pytest.raises(SteeringError) as raised:
            SteeringProgram(sites)
        assert contradicts(tuple(edits[row] for _, row in raised.value.rows)), "the rows named contradict"
    assert 0.2 < sum(outcomes) / len(outcomes) < 0.8


def test_thousands_of_caps_of_one_feature_are_checked_in_one_pass() -> None:
    probe = Probe.direction(torch.eye(4)[0])
    caps = tuple(Edit(probe, a=1.0, hi=1.0 + index) for index in range(20_000))
    began = time.monotonic()
    SteeringProgram({tiny.FIRST_SITE: SiteProgram(edits=caps)})
    assert time.monotonic() - began < 2.0
