"""Every row of the status table that a client can provoke, with its details, over a real socket."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest

from saegis.v1 import feature_pb2, generation_pb2, model_pb2, prompt_pb2, steering_pb2
from saegis_server.rpc.wire.errors import DOMAIN, PUSHBACK_KEY
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Failure, Running, eventually, failure, running, send_bytes
from tests.tiers import sized

CLAMP = steering_pb2.OPERATION_CLAMP


def request(text: str = "the river", max_tokens: int = 4, **fields: Any) -> generation_pb2.GenerateRequest:
    """A greedy request."""
    sampling = generation_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return generation_pb2.GenerateRequest(**{"text": text, "sampling": sampling, **fields})


def edit(index: int = 3, sae: str = "first", **fields: Any) -> steering_pb2.Edit:
    return steering_pb2.Edit(feature=steering_pb2.FeatureRef(sae=sae, index=index), **fields)


def steered(*edits: steering_pb2.Edit, **fields: Any) -> generation_pb2.GenerateRequest:
    return request(steering=steering_pb2.Steering(edits=edits), **fields)


def both(stubs: Stubs, message: generation_pb2.GenerateRequest) -> Failure:
    """Fail a request as unary and as a stream, which must tell the same."""
    unary = failure(lambda: stubs.generation.Generate(message))
    wrapped = generation_pb2.StreamGenerateRequest(request=message)
    stream = failure(lambda: stubs.generation.StreamGenerate(wrapped))
    assert (unary.code, unary.message, unary.reason) == (stream.code, stream.message, stream.reason)
    assert unary.details["ErrorInfo"].domain == DOMAIN
    assert unary.details["RequestInfo"].request_id != stream.details["RequestInfo"].request_id
    return unary


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(request_id=""), "request_id"),
        (request(request_id="x" * 129), "request_id"),
        (request(request_id="two\nlines"), "request_id"),
        (generation_pb2.GenerateRequest(), "text"),
        (generation_pb2.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=[999])), "token_ids.ids[0]"),
        (request(sampling=generation_pb2.SamplingParams(top_p=math.nan)), "sampling.top_p"),
        (request(sampling=generation_pb2.SamplingParams(n=65)), "sampling.n"),
        (steered(edit(operation=CLAMP, value=1.0, site="here")), "steering.edits[0].site"),
        (steered(edit(operation=CLAMP, value=1.0, unit=77)), "steering.edits[0].unit"),
        (steered(edit(operation=CLAMP, value=math.nan)), "steering.edits[0].value"),
        (steered(edit(operation=CLAMP, value=math.inf)), "steering.edits[0].value"),
        (steered(edit(operation=CLAMP, value=1e300)), "steering.edits[0].value"),
        (steered(*(edit(i, operation=CLAMP, value=1.0) for i in range(9))), "steering.edits[8]"),
    ],
)
def test_a_wrong_field_is_named(stubs: Stubs, message: generation_pb2.GenerateRequest, field: str) -> None:
    found = both(stubs, message)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert found.fields == [field]
    assert found.message.startswith(f"{field}: ")


def test_a_prompt_beyond_the_context(stubs: Stubs) -> None:
    found = both(stubs, request("x " * 2 * tiny.CONTEXT))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CONTEXT_LENGTH_EXCEEDED")
    assert found.fields == ["text"]
    assert found.details["ErrorInfo"].metadata["max_context_tokens"] == str(tiny.CONTEXT)


def test_edits_that_contradict_each_other(stubs: Stubs) -> None:
    found = both(stubs, steered(edit(operation=CLAMP, value=1.0), edit(operation=CLAMP, value=2.0)))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_CONTRADICT")
    assert found.fields == ["steering.edits[1]", "steering.edits[0]"]


def test_edits_that_make_the_activations_overflow(stubs: Stubs) -> None:
    found = both(stubs, steered(edit(0, "explosive", operation=CLAMP, value=1e6)))
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "STEERING_DIVERGED")


def test_an_unknown_sae(stubs: Stubs) -> None:
    found = both(stubs, steered(edit(sae="third", operation=CLAMP, value=1.0)))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "SAE_NOT_FOUND")
    assert found.details["ResourceInfo"].resource_name == "third"
    assert found.fields == ["steering.edits[0].feature.sae"]


def test_an_sae_at_another_site(stubs: Stubs) -> None:
    found = both(stubs, steered(edit(operation=CLAMP, value=1.0, site=str(tiny.SECOND_SITE))))
    assert (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SAE_NOT_AT_SITE")
    assert found.details["PreconditionFailure"].violations[0].subject == "first"


@pytest.mark.parametrize(
    "method",
    [
        "/saegis.v1.GenerationService/Generate",
        "/saegis.v1.ModelService/Tokenize",
        "/saegis.v1.FeatureService/Inspect",
    ],
)
def test_malformed_bytes(stubs: Stubs, method: str) -> None:
    found = send_bytes(stubs.channel, method, b"\xff\xff\xff")
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_malformed_bytes_of_a_stream(stubs: Stubs) -> None:
    method = "/saegis.v1.GenerationService/StreamGenerate"
    found = send_bytes(stubs.channel, method, b"\x0a\x80", streams=True)
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_text_that_is_no_unicode(stubs: Stubs) -> None:
    found = send_bytes(stubs.channel, "/saegis.v1.GenerationService/Generate", b"\x12\x02\xff\xfe")
    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


def test_an_unknown_method(stubs: Stubs) -> None:
    found = send_bytes(stubs.channel, "/saegis.v1.GenerationService/Fly", b"")
    assert found.code is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_beyond_the_limit(stubs: Stubs) -> None:
    found = failure(lambda: stubs.generation.Generate(request("x" * (4 * 2**20))))
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stubs.generation.Generate(request()).choices[0].token_ids


def test_the_callers_request_id_is_told(stubs: Stubs) -> None:
    found = failure(lambda: stubs.generation.Generate(request(request_id="mine", text="", max_tokens=0)))
    assert found.details["RequestInfo"].request_id == "mine"
    assert stubs.generation.Generate(request(request_id="mine")).request_id == "mine"


def long_stream(stubs: Stubs, name: str, **fields: Any) -> Any:
    """A request that runs on for a while; returns once its first piece is there."""
    message = request(request_id=name, max_tokens=tiny.CONTEXT, **fields)
    stream = stubs.generation.StreamGenerate(generation_pb2.StreamGenerateRequest(request=message))
    next(stream)
    return stream


def test_a_request_id_that_is_in_flight(stubs: Stubs) -> None:
    stream = long_stream(stubs, "twice")
    found = failure(lambda: stubs.generation.Generate(request(request_id="twice")))
    stream.cancel()
    assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_IN_FLIGHT")
    assert found.details["ResourceInfo"].resource_type == "saegis.dev/Request"
    assert found.details["ResourceInfo"].resource_name == "twice"


def test_a_full_queue_asks_to_come_again() -> None:
    with running(max_num_seqs=1, queue_limit=1) as server, grpc.insecure_channel(server.target) as channel:
        stubs = Stubs.on(channel)
        running_one = long_stream(stubs, "running")
        waiting = stubs.generation.Generate.future(request())
        eventually(lambda: server.services.engine.stats().waiting == 1)
        found = both(stubs, request())
        running_one.cancel()
        assert waiting.result(timeout=20).choices
        eventually(server.is_idle)
    assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert found.details["RetryInfo"].retry_delay.ToNanoseconds() > 0
    assert found.details["QuotaFailure"].violations[0].subject == "queue"
    assert int(found.trailers[PUSHBACK_KEY]) > 0


def test_a_deadline_that_passes_in_the_queue() -> None:
    with running(max_num_seqs=1) as server, grpc.insecure_channel(server.target) as channel:
        stubs = Stubs.on(channel)
        stream = long_stream(stubs, "running")
        steps = server.services.engine.stats().steps
        found = failure(lambda: stubs.generation.Generate(request(), timeout=0.2))
        eventually(lambda: server.services.engine.stats().waiting == 0)
        stream.cancel()
        eventually(server.is_idle)
    prompts = server.services.metrics.registry.get_sample_value(
        "saegis_prompt_tokens_total", {"tenant_class": "_other"}
    )
    assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert steps > 0
    # That of the one that ran, and nothing of the one that waited.
    assert prompts == len(server.services.prompts.text("the river"))


def test_a_deadline_that_passes_while_running(stubs: Stubs, served: Running) -> None:
    message = generation_pb2.StreamGenerateRequest(request=request(max_tokens=tiny.CONTEXT))
    found = failure(lambda: stubs.generation.StreamGenerate(message, timeout=0.2))
    assert found.code is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(served.is_idle, seconds=1.0)


def test_cancellation_frees_the_slot(stubs: Stubs, served: Running) -> None:
    stream = long_stream(stubs, "cancelled")
    assert served.services.engine.stats().running == 1
    stream.cancel()
    eventually(served.is_idle, seconds=1.0)


def test_what_nobody_foresaw_leaks_nothing(
    stubs: Stubs, served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(type(served.services.engine), "stats", broken)
    found = failure(lambda: stubs.models.GetLoad(model_pb2.GetLoadRequest()))
    monkeypatch.undo()
    assert (found.code, found.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_ERROR")
    assert "secret" not in repr(found)
    error_id = found.details["ErrorInfo"].metadata["error_id"]
    (record,) = [each for each in caplog.records if error_id in each.getMessage()]
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


WRONG: tuple[Callable[[Stubs], object], ...] = (
    lambda stubs: stubs.generation.Generate(request("x " * 2 * tiny.CONTEXT)),
    lambda stubs: stubs.generation.Generate(steered(edit(operation=CLAMP, value=math.nan))),
    lambda stubs: stubs.generation.Generate(steered(edit(0, "explosive", operation=CLAMP, value=1e6))),
    lambda stubs: stubs.generation.Generate(steered(edit(sae="third", operation=CLAMP, value=1.0))),
    lambda stubs: stubs.generation.Generate(request(max_tokens=tiny.CONTEXT), timeout=0.02),
    lambda stubs: stubs.generation.Generate(request(request_id="")),
    lambda stubs: stubs.features.Inspect(feature_pb2.InspectRequest(text="x", sae="third")),
)


def test_a_request_beside_wrong_ones_does_not_change(stubs: Stubs, served: Running) -> None:
    message = request(
        request_id="beside",
        max_tokens=sized(400, 100),
        steering=steering_pb2.Steering(edits=[edit(operation=CLAMP, value=3.0)]),
    )
    alone = stubs.generation.Generate(message).choices[0]
    with_wrong = stubs.generation.Generate.future(message)
    eventually(lambda: served.services.engine.stats().running == 1)
    duplicate = failure(lambda: stubs.generation.Generate(message))
    rounds = 0
    while not with_wrong.done():
        for wrong in WRONG:
            if not with_wrong.done():
                failure(partial(wrong, stubs))
        rounds += 1
    beside = with_wrong.result().choices[0]
    assert duplicate.code is grpc.StatusCode.ALREADY_EXISTS
    assert rounds > 0
    assert list(beside.token_ids) == list(alone.token_ids)
    assert beside.text == alone.text
