"""What a call can raise: one exception for each gRPC status, with the details that the server sent.

    SaegisError
    ├── InvalidArgument      a field of the request is wrong: see .violations. Do not retry
    ├── NotFound             no such feature, SAE, site, policy or revision: see .violations. Do not retry
    ├── AlreadyExists        a request of this request_id is running
    ├── FailedPrecondition   the server is not set up for this, such as chat without a chat template
    ├── Aborted              something was changed meanwhile: read it again
    ├── PermissionDenied     the operator's policy or the caller's role forbids it
    ├── Unauthenticated      no token or certificate, or a wrong one
    ├── ResourceExhausted    the queue or a quota is full: wait .retry_after seconds
    ├── Unavailable          the server starts or stops: retry; or it cannot be reached: .reason says why
    ├── DeadlineExceeded     the timeout passed
    ├── Cancelled            the call was cancelled or its stream closed
    ├── Unimplemented        the server does not know the call
    └── InternalError        a defect of the server: report .request_id and .metadata

A value that cannot be written into a request raises TypeError or ValueError before anything is sent.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from saegis.unreached import Reach, why_unreached

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"


class FieldViolation(NamedTuple):
    """One wrong field of a request."""

    field: str
    """The field's path from the request, such as "steering.edits[2].feature.index"."""
    description: str
    """What is wrong with it."""


class SaegisError(Exception):
    """A call failed. The base of all errors from a server's answer or its absence."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after: float | None = None,
        request_id: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        """What happened, in a sentence."""
        self.reason = reason
        """What happened, for programs: a constant such as "QUEUE_FULL", or one of `saegis.Unreached` if
        there was no connection. Empty if the server gave none."""
        self.retry_after = retry_after
        """How long to wait before a retry, in seconds. None if the server gave no advice."""
        self.request_id = request_id
        """The server's name for the request. Empty if it gave none."""
        self.metadata = dict(metadata or {})
        """More about the reason, such as the policy's rule."""
        self.violations = list(violations)
        """The request's wrong fields; most errors have none."""

    def __str__(self) -> str:
        return f"{self.message} ({'; '.join(self.untold)})" if self.untold else self.message

    @property
    def untold(self) -> list[str]:
        """The wrong fields that `message` does not mention, each with what is wrong with it."""
        # The server cuts long texts, and allows the message more than the fields.
        fields = [f"{field}: {text}" for field, text in self.violations]
        return [text for text in fields if text.removesuffix("...") not in self.message]


class InvalidArgument(SaegisError):
    """A field of the request is wrong; `violations` names it."""


class NotFound(SaegisError):
    """The request names a feature, SAE, site, policy or revision that the server does not have.

    `metadata` and `violations` say which field names it. An ambiguous name, such as a label of two features,
    is InvalidArgument.
    """


class AlreadyExists(SaegisError):
    """What the request would create exists, such as a running request of the same request_id."""


class FailedPrecondition(SaegisError):
    """The server is not set up for this request."""


class Aborted(SaegisError):
    """Something changed between reading and writing it."""


class PermissionDenied(SaegisError):
    """The operator's policy or the caller's role forbids the request."""


class Unauthenticated(SaegisError):
    """The caller gave no credentials, or wrong ones."""


class ResourceExhausted(SaegisError):
    """The server's queue, a quota, or a size limit is exhausted."""


class Unavailable(SaegisError):
    """The server cannot be reached, or it is starting or stopping."""


class DeadlineExceeded(SaegisError):
    """The timeout passed before the call ended."""


class Cancelled(SaegisError):
    """The call was cancelled, or its stream closed."""


class Unimplemented(SaegisError):
    """The server does not know the call."""


class InternalError(SaegisError):
    """The server failed in a way that it did not foresee, or its answer breaks the contract."""


_BY_STATUS: dict[grpc.StatusCode, type[SaegisError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}


def from_rpc_error(error: grpc.RpcError, reach: Reach) -> SaegisError:
    """The exception for an error of grpc or grpc.aio, with the google.rpc details of its trailers.

    reach: how the client tried to reach the server, to explain a failure.
    """
    unreached = why_unreached(error.details() or "", reach) if error.code() is _UNAVAILABLE else None
    if unreached is not None:
        return Unavailable(unreached[1], reason=unreached[0])
    # The type stubs are wrong: both kinds of grpc return pairs.
    trailers = dict(cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ()))
    info = error_details_pb2.ErrorInfo()
    request = error_details_pb2.RequestInfo()
    fields = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after = None
    for detail in _status(trailers).details:
        for message in (info, request, fields):
            detail.Unpack(message)
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    pushback = trailers.get(_PUSHBACK_KEY)
    if retry_after is None and isinstance(pushback, str) and pushback.isdigit():
        retry_after = int(pushback) / 1000
    return _BY_STATUS[error.code()](
        error.details() or error.code().name,
        reason=info.reason,
        retry_after=retry_after,
        request_id=request.request_id,
        metadata=dict(info.metadata),
        violations=[
            FieldViolation(violation.field, violation.description) for violation in fields.field_violations
        ],
    )


def _status(trailers: Mapping[str, str | bytes]) -> status_pb2.Status:
    """The google.rpc.Status of the trailers; an empty one if there is none or it is malformed."""
    encoded = trailers.get(_DETAILS_KEY, b"")
    try:
        return status_pb2.Status.FromString(encoded if isinstance(encoded, bytes) else encoded.encode())
    except DecodeError:
        return status_pb2.Status()
