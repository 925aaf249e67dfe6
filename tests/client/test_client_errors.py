"""Failures: statuses become exceptions with their details; UNAVAILABLE is retried, deadlines hold."""

import math
import pickle
import time
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

import saegis
from saegis import errors
from saegis.unreached import Reach
from saegis.v1 import generation_pb2, model_pb2
from tests.client.conftest import Caller
from tests.client.loopback import Failure, Loopback

EXPECTED: dict[grpc.StatusCode, type[saegis.SaegisError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: saegis.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: saegis.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: saegis.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: saegis.FailedPrecondition,
    grpc.StatusCode.ABORTED: saegis.Aborted,
    grpc.StatusCode.PERMISSION_DENIED: saegis.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: saegis.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: saegis.ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: saegis.Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: saegis.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: saegis.Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: saegis.Unimplemented,
    grpc.StatusCode.INTERNAL: saegis.InternalError,
    grpc.StatusCode.UNKNOWN: saegis.InternalError,
    grpc.StatusCode.DATA_LOSS: saegis.InternalError,
    grpc.StatusCode.OUT_OF_RANGE: saegis.InvalidArgument,
}
ONCE = {"max_attempts": 1}


def answer_load(loopback: Loopback) -> None:
    loopback.answers["GetLoad"] = model_pb2.GetLoadResponse(num_running_reqs=1)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_its_exception(loopback: Loopback, call: Caller, code: grpc.StatusCode) -> None:
    loopback.failures["GetLoad"] = [Failure(code, "told so")]
    with pytest.raises(saegis.SaegisError) as caught:
        call("load", settings=ONCE)
    assert type(caught.value) is EXPECTED[code]
    assert caught.value.message == str(caught.value) == "told so"
    assert (caught.value.reason, caught.value.request_id, caught.value.retry_after) == ("", "", None)


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_details_are_decoded(loopback: Loopback, method: str) -> None:
    failure = Failure(
        grpc.StatusCode.INVALID_ARGUMENT,
        "the request has 2 wrong fields",
        details=[
            error_details_pb2.BadRequest(
                field_violations=[
                    {"field": "steering.edits[2].feature.index", "description": "no feature 9"},
                    {"field": "sampling.top_p", "description": "must be in (0, 1]"},
                ]
            ),
            error_details_pb2.ErrorInfo(
                reason="FIELD_INVALID", domain="saegis.dev", metadata={"sae": "res-12"}
            ),
            error_details_pb2.RequestInfo(request_id="r7"),
        ],
    )
    loopback.failures = {"Generate": [failure], "StreamGenerate": [failure]}
    with saegis.Client(loopback.target) as client, pytest.raises(saegis.InvalidArgument) as caught:
        client.generate("x") if method == "generate" else list(client.stream("x"))
    error = caught.value
    assert error.violations == [
        ("steering.edits[2].feature.index", "no feature 9"),
        ("sampling.top_p", "must be in (0, 1]"),
    ]
    assert error.violations[0].field == "steering.edits[2].feature.index"
    assert (error.reason, error.request_id, error.metadata) == ("FIELD_INVALID", "r7", {"sae": "res-12"})
    assert str(error) == (
        "the request has 2 wrong fields (steering.edits[2].feature.index: no feature 9; "
        "sampling.top_p: must be in (0, 1])"
    )


async def test_details_are_decoded_by_the_asyncio_stream(loopback: Loopback) -> None:
    info = error_details_pb2.ErrorInfo(reason="POLICY_DENIED", metadata={"rule": "no-weapons"})
    loopback.failures["StreamGenerate"] = [Failure(grpc.StatusCode.PERMISSION_DENIED, details=[info])]
    async with saegis.AsyncClient(loopback.target) as client:
        with pytest.raises(saegis.PermissionDenied) as caught:
            await client.stream("x").collect()
    assert (caught.value.reason, caught.value.metadata) == ("POLICY_DENIED", {"rule": "no-weapons"})


def test_retry_advice(loopback: Loopback, call: Caller) -> None:
    advice = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    full = grpc.StatusCode.RESOURCE_EXHAUSTED
    loopback.failures["GetLoad"] = [
        Failure(full, details=[advice]),
        Failure(full, trailers=[("grpc-retry-pushback-ms", "1500")]),
    ]
    for expected in (2.5, 1.5):
        with pytest.raises(saegis.ResourceExhausted) as caught:
            call("load")
        assert caught.value.retry_after == expected
    assert len(loopback.received) == 2, "only UNAVAILABLE is retried"


def test_unreadable_details_do_not_hide_the_error(loopback: Loopback) -> None:
    class Odd(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.NOT_FOUND

        def details(self) -> str:
            return ""

        def trailing_metadata(self) -> Any:
            return (("grpc-status-details-bin", b"\xff\xff"), ("grpc-retry-pushback-ms", "soon"))

    error = errors.from_rpc_error(Odd(), Reach("a server", encrypted=False, certified=False))
    assert type(error) is saegis.NotFound
    assert (error.message, error.retry_after) == ("NOT_FOUND", None)


def test_errors_survive_pickling() -> None:
    error = saegis.InvalidArgument(
        "bad", reason="R", retry_after=1.5, violations=[saegis.FieldViolation("n", "too large")]
    )
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is saegis.InvalidArgument
    assert vars(copy) == vars(error)
    assert str(copy) == "bad (n: too large)"


def test_unavailable_is_retried(loopback: Loopback, call: Caller) -> None:
    answer_load(loopback)
    loopback.failures["GetLoad"] = [Failure(grpc.StatusCode.UNAVAILABLE)] * 2
    assert call("load").num_running_reqs == 1
    assert [len(loopback.received), loopback.received[-1].metadata["grpc-previous-rpc-attempts"]] == [3, "2"]


def test_retries_end(loopback: Loopback, call: Caller) -> None:
    loopback.failures["GetLoad"] = [Failure(grpc.StatusCode.UNAVAILABLE, "draining")] * 9
    with pytest.raises(saegis.Unavailable, match="draining"):
        call("load", settings={"max_attempts": 2})
    assert len(loopback.received) == 2
    with pytest.raises(saegis.Unavailable):
        call("load", settings=ONCE)
    assert len(loopback.received) == 3


def test_pushback_sets_the_delay(loopback: Loopback, call: Caller) -> None:
    answer_load(loopback)
    trailers = [("grpc-retry-pushback-ms", "400")]
    loopback.failures["GetLoad"] = [Failure(grpc.StatusCode.UNAVAILABLE, trailers=trailers)]
    call("load")
    first, second = (received.at for received in loopback.received)
    # Without pushback the first delay is at most 0.12 s.
    assert 0.39 < second - first < 3


def test_a_stream_is_retried_before_its_first_message_only(loopback: Loopback) -> None:
    piece = generation_pb2.StreamGenerateResponse(chunk=generation_pb2.GenerationChunk(text="a"))
    loopback.failures["StreamGenerate"] = [Failure(grpc.StatusCode.UNAVAILABLE)]
    loopback.answers["StreamGenerate"] = [piece, Failure(grpc.StatusCode.UNAVAILABLE, "engine restarting")]
    with saegis.Client(loopback.target) as client:
        stream = client.stream("x")
        assert next(stream).text == "a"
        with pytest.raises(saegis.Unavailable, match="engine restarting"):
            next(stream)
    assert len(loopback.received) == 2


def test_deadline(loopback: Loopback, call: Caller) -> None:
    answer_load(loopback)
    loopback.pause_seconds = 5
    started = time.monotonic()
    with pytest.raises(saegis.DeadlineExceeded):
        call("load", timeout=0.2)
    with pytest.raises(saegis.DeadlineExceeded):
        call("load", settings={"timeout": 0.2})
    assert time.monotonic() - started < 4
    assert all(0 < (received.time_remaining or 9) < 0.3 for received in loopback.received)
    assert loopback.ended.wait(3), "the server learns of it"


def test_no_deadline(loopback: Loopback, call: Caller) -> None:
    answer_load(loopback)
    call("load")
    call("load", settings={"timeout": 7}, timeout=math.inf)
    for received in loopback.received:
        # gRPC has no way to say "none": it tells some centuries.
        assert received.time_remaining is None or received.time_remaining > 1e6
    with pytest.raises(ValueError, match="timeout must be positive, not 0"):
        call("load", timeout=0)


def test_nobody_there(call: Caller, loopback: Loopback) -> None:
    loopback.target = "unix:/nonexistent/saegis.sock"
    with pytest.raises(saegis.Unavailable):
        call("load", settings=ONCE)
    assert call("healthy") is False
