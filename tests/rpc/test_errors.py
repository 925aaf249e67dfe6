"""The status table itself: rows that a client cannot easily provoke, and the form of what is told."""

import grpc
import pytest
import torch
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from saegis_server.audit import AuditUnavailableError
from saegis_server.engine import api as engine
from saegis_server.policy import errors as policy
from saegis_server.rpc.wire import problems
from saegis_server.rpc.wire.errors import PUSHBACK_KEY, describe, status, trailers
from saegis_server.steering.program import SteeringError

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "code", "reason", "retries"),
    [
        (engine.NonFiniteLogitsError("x"), Code.INTERNAL, "NON_FINITE_LOGITS", False),
        (engine.SteeringDivergedError("x"), Code.INVALID_ARGUMENT, "STEERING_DIVERGED", False),
        (engine.DeadlineExceededError("x"), Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", False),
        (engine.EngineStoppedError("x"), Code.UNAVAILABLE, "ENGINE_RESTARTING", True),
        (engine.QueueFullError(3, 0.25), Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", True),
        (SteeringError("x", None), Code.INVALID_ARGUMENT, "FIELD_INVALID", False),
        (torch.OutOfMemoryError("x"), Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", True),
        (problems.NotServingError("DRAINING", "x", 1.0), Code.UNAVAILABLE, "DRAINING", True),
        (problems.BusyError("TENANT_LIMIT", "t", "x", 1.0), Code.RESOURCE_EXHAUSTED, "TENANT_LIMIT", True),
        (problems.MessageTooLargeError("m", 9, 8), Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", False),
        (problems.SlowReaderError(8), Code.RESOURCE_EXHAUSTED, "SLOW_READER", False),
        (problems.StalledReaderError(2.5), Code.RESOURCE_EXHAUSTED, "SLOW_READER", False),
        (problems.UnsentRequestError(2.5), Code.DEADLINE_EXCEEDED, "REQUEST_NOT_SENT", False),
        (problems.UnauthenticatedError("token", "x"), Code.UNAUTHENTICATED, "UNAUTHENTICATED", False),
        (problems.RoleMissingError("use", "m", "f"), Code.PERMISSION_DENIED, "ROLE_MISSING", False),
        (problems.InFlightError("id"), Code.ALREADY_EXISTS, "REQUEST_IN_FLIGHT", False),
        (policy.StaleEtagError("p", "e"), Code.ABORTED, "REVISION_CONFLICT", False),
        (policy.UnknownPolicyError("p", ()), Code.NOT_FOUND, "POLICY_NOT_FOUND", False),
        (policy.UnknownRevisionError("p", "d", "x"), Code.NOT_FOUND, "REVISION_NOT_FOUND", False),
        (policy.HistoryError("x"), Code.UNAVAILABLE, "POLICY_STATE_UNAVAILABLE", False),
        (engine.OutOfMemoryError("x"), Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY", True),
        (AuditUnavailableError("x"), Code.UNAVAILABLE, "AUDIT_UNAVAILABLE", True),
        (
            problems.PreconditionError("NO_CHAT_TEMPLATE", "t", "x"),
            Code.FAILED_PRECONDITION,
            "NO_CHAT_TEMPLATE",
            False,
        ),
        (NotImplementedError("x"), Code.UNIMPLEMENTED, "UNIMPLEMENTED", False),
        (ValueError("x"), Code.INTERNAL, "INTERNAL_ERROR", False),
        (KeyError("x"), Code.INTERNAL, "INTERNAL_ERROR", False),
        (AssertionError("x"), Code.INTERNAL, "INTERNAL_ERROR", False),
    ],
)
def test_rows(error: Exception, code: grpc.StatusCode, reason: str, retries: bool) -> None:
    problem = describe(error)
    assert (problem.code, problem.reason) == (code, reason)
    assert (PUSHBACK_KEY in dict(trailers(problem, "id"))) is retries
    assert (problem.retry_after is not None) is retries


def test_an_unforeseen_error_is_named_and_not_told() -> None:
    first, second = describe(ValueError("secret path")), describe(ValueError("secret path"))
    assert "secret" not in repr(first)
    assert first.metadata["error_id"] != second.metadata["error_id"]


def test_the_pushback_is_whole_milliseconds_and_never_too_short() -> None:
    told = dict(trailers(describe(engine.QueueFullError(3, 0.0301)), "id"))
    assert told[PUSHBACK_KEY] == "31"


def test_reasons_keep_to_googles_form() -> None:
    message = status(describe(engine.QueueFullError(3, 0.25)), "the id")
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert message.details[0].Unpack(info)
    assert message.details[1].Unpack(request)
    assert (info.domain, request.request_id) == ("saegis.dev", "the id")
    assert len(info.reason) <= 63
    assert info.reason.replace("_", "").isupper()
