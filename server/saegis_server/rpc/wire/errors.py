"""The status table: the gRPC status and google.rpc details of each exception.

If a request names something that does not exist (an SAE, a feature by index or label, a site, a policy, a
revision), the status is NOT_FOUND, with its ResourceInfo and the field that names it. A malformed, ambiguous
or out-of-range value is INVALID_ARGUMENT. Two things that exist but do not belong together (an SAE and a
site) are FAILED_PRECONDITION.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import grpc
import torch
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from saegis_server.audit import AuditUnavailableError
from saegis_server.directions import store as directions
from saegis_server.engine import api as engine
from saegis_server.policy import errors as policy
from saegis_server.policy.decide.decision import Denial
from saegis_server.policy.decide.disclosure import disclosed_revisions
from saegis_server.rpc.auth.identity import current_audience
from saegis_server.rpc.wire import problems
from saegis_server.sae import catalog
from saegis_server.steering.program import SteeringError

Code = grpc.StatusCode
Cell = TypeVar("Cell")
#: Makes a cell of a row of the table from an exception.
Of: TypeAlias = Callable[[Any], Cell]

DOMAIN = "saegis.dev"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DETAILS_KEY = "grpc-status-details-bin"
#: How long to wait before a retry if the cause soon ends by itself: a restart, another request's memory.
RETRY_SECONDS = 1.0
#: The most bytes of a message as sent, of each text in the details, and of the status with all its details.
#: Trailers have little room, and a message may quote what the caller sent: beyond 8 KiB a client sees only
#: RESOURCE_EXHAUSTED. In a message, each byte that is not printable ASCII takes three.
LONGEST_MESSAGE, LONGEST_DETAIL, MOST_STATUS_BYTES = 1000, 300, 3600


@dataclass(frozen=True, slots=True)
class Problem:
    """What the client receives. violations: paths in the request, each with what is wrong there."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    details: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", shortened(self.message, LONGEST_MESSAGE, escaped=3))


def _said(error: Any) -> str:
    """An exception's message without the field at its beginning."""
    return str(getattr(error, "description", error))


def _own_field(error: Any) -> tuple[tuple[str, str], ...]:
    field = getattr(error, "field", "")
    return ((field, _said(error)),) if field else ()


@dataclass(frozen=True, slots=True)
class _Row:
    """What an exception becomes. Each cell is a constant or a function of the exception.

    message: by default the exception's own text. fields: the violations, by default its own field.
    details: further ones beside those that every status has.
    """

    code: grpc.StatusCode
    reason: str | Of[str]
    message: str | Of[str] = str
    fields: Of[Iterable[tuple[str, str]]] = _own_field
    metadata: Of[Mapping[str, str]] | None = None
    details: Of[Message] | None = None
    retry_after: float | Of[float] | None = None

    def problem(self, error: BaseException) -> Problem:
        """The problem that this row makes of an exception."""
        return Problem(
            self.code,
            self.reason if isinstance(self.reason, str) else self.reason(error),
            self.message if isinstance(self.message, str) else self.message(error),
            {} if self.metadata is None else self.metadata(error),
            tuple(self.fields(error)),
            self.retry_after(error) if callable(self.retry_after) else self.retry_after,
            () if self.details is None else (self.details(error),),
        )


def _in_steering(error: Any) -> tuple[tuple[str, str], ...]:
    return (("steering", str(error)),)


def _resource(kind: str, name: Of[str]) -> Of[Message]:
    return lambda error: error_details_pb2.ResourceInfo(
        resource_type=f"{DOMAIN}/{kind}",
        resource_name=shortened(name(error)),
        description=shortened(_said(error)),
    )


def _precondition(kind: Of[str], subject: Of[str]) -> Of[Message]:
    violation = error_details_pb2.PreconditionFailure.Violation
    return lambda error: error_details_pb2.PreconditionFailure(
        violations=[
            violation(
                type=kind(error), subject=shortened(subject(error)), description=shortened(_said(error))
            )
        ]
    )


def _quota(subject: Of[str]) -> Of[Message]:
    violation = error_details_pb2.QuotaFailure.Violation
    return lambda error: error_details_pb2.QuotaFailure(
        violations=[violation(subject=shortened(subject(error)), description=shortened(str(error)))]
    )


def _not_found(what: str, kind: str, name: Of[str]) -> _Row:
    """The row of something that a request names and that does not exist here."""
    return _Row(
        Code.NOT_FOUND,
        f"{what}_NOT_FOUND",
        lambda e: str(e) if _own_field(e) else _said(e),
        details=_resource(kind, name),
    )


def _bundle_row(code: grpc.StatusCode, reason: str) -> _Row:
    """The row of a rejected bundle: its first problem, their number, and each as a violation."""
    return _Row(
        code,
        reason,
        lambda e: f"the bundle is not taken: {_first(list(map(str, e.problems)))}",
        fields=lambda e: (
            (" ".join(filter(None, (problem.place, problem.path))) or "bundle", problem.message)
            for problem in e.problems
        ),
        metadata=lambda e: {"kind": e.kind, "problems": str(len(e.problems))},
    )


def _first(messages: Sequence[str]) -> str:
    """The first message, shortened to leave room for the rest, and how many more there are."""
    more = len(messages) - 1
    return shortened(messages[0], LONGEST_MESSAGE // 2, escaped=3) + (f" (and {more} more)" if more else "")


def _denials(error: problems.PolicyDeniedError) -> list[Denial]:
    """The denials whose rules the caller may know."""
    return [denial for denial in current_audience().denials(error.decision) if denial.rule]


def _denied(error: problems.PolicyDeniedError) -> str:
    messages = [denial.message for denial in _denials(error)]
    return "the operator's policy denies the request" + (f": {_first(messages)}" if messages else "")


def _denied_by(error: problems.PolicyDeniedError) -> dict[str, str]:
    metadata = {"decision_id": error.decision_id}
    if denials := _denials(error):
        metadata |= {"policy": denials[0].policy, "rule": denials[0].rule, "denials": str(len(denials))}
    if revision := disclosed_revisions(error.decision, current_audience()):
        metadata["revision"] = revision
    return metadata


def _denied_fields(error: problems.PolicyDeniedError) -> Iterable[tuple[str, str]]:
    for denial in current_audience().denials(error.decision):
        if denial.field:
            rule = f"{denial.policy}/{denial.rule}: " if denial.rule else ""
            yield denial.field, f"{rule}{denial.message}"


_OUT_OF_MEMORY = _Row(
    Code.RESOURCE_EXHAUSTED,
    "OUT_OF_MEMORY",
    "the device has no memory left for this request",
    retry_after=RETRY_SECONDS,
)
#: The table. The first kind that matches wins, so subclasses come before their bases.
_TABLE: Mapping[type[BaseException], _Row] = {
    # Errors in the request.
    problems.MalformedRequestError: _Row(Code.INVALID_ARGUMENT, "MALFORMED_REQUEST"),
    problems.ContextLengthError: _Row(
        Code.INVALID_ARGUMENT,
        "CONTEXT_LENGTH_EXCEEDED",
        metadata=lambda e: {"prompt_tokens": str(e.tokens), "max_context_tokens": str(e.max_length)},
    ),
    problems.ConflictError: _Row(
        Code.INVALID_ARGUMENT,
        "FIELDS_CONTRADICT",
        fields=lambda e: ((path, e.description) for path in (e.field, *e.others)),
    ),
    problems.UnknownSiteError: _not_found("SITE", "Site", lambda e: e.site),
    problems.UnknownModelError: _not_found("MODEL", "Model", lambda e: e.model),
    problems.UnknownDirectionError: _not_found("DIRECTION", "Direction", lambda e: e.reference),
    directions.DirectionTakenError: _Row(
        Code.ALREADY_EXISTS, "DIRECTION_EXISTS", lambda e: f"{e.field}: {e}"
    ),
    engine.FieldError: _Row(Code.INVALID_ARGUMENT, "FIELD_INVALID"),
    SteeringError: _Row(
        Code.INVALID_ARGUMENT,
        "FIELD_INVALID",
        lambda e: f"steering: {e}",
        fields=_in_steering,
        metadata=lambda e: {"site": str(e.site or "")},
    ),
    engine.SteeringDivergedError: _Row(
        Code.INVALID_ARGUMENT, "STEERING_DIVERGED", lambda e: f"steering: {e}", fields=_in_steering
    ),
    catalog.UnknownSAEError: _not_found("SAE", "Sae", lambda e: e.sae),
    catalog.SAENotAtSiteError: _Row(
        Code.FAILED_PRECONDITION,
        "SAE_NOT_AT_SITE",
        details=_precondition(lambda _: "SAE_NOT_AT_SITE", lambda e: e.sae),
    ),
    catalog.UnknownFeatureError: _not_found("FEATURE", "Feature", lambda e: f"{e.sae}/{e.feature}"),
    catalog.AmbiguousFeatureError: _Row(Code.INVALID_ARGUMENT, "FIELD_INVALID"),
    problems.PreconditionError: _Row(
        Code.FAILED_PRECONDITION,
        lambda e: e.kind,
        details=_precondition(lambda e: e.kind, lambda e: e.subject),
    ),
    problems.InFlightError: _Row(
        Code.ALREADY_EXISTS,
        "REQUEST_IN_FLIGHT",
        lambda e: f"request_id: {e}",
        details=_resource("Request", lambda e: e.request_id),
    ),
    # Policies and identities.
    problems.PolicyDeniedError: _Row(
        Code.PERMISSION_DENIED, "POLICY_DENIED", _denied, fields=_denied_fields, metadata=_denied_by
    ),
    policy.SignatureError: _bundle_row(Code.PERMISSION_DENIED, "POLICY_SIGNATURE"),
    policy.SerialError: _bundle_row(Code.FAILED_PRECONDITION, "POLICY_SERIAL"),
    policy.PolicyError: _bundle_row(Code.INVALID_ARGUMENT, "POLICY_INVALID"),
    policy.StaleEtagError: _Row(
        Code.ABORTED,
        "REVISION_CONFLICT",
        fields=lambda _: (("etag", "is not that of the policy in force"),),
        metadata=lambda e: {"policy": e.name},
    ),
    policy.UnknownPolicyError: _not_found("POLICY", "Policy", lambda e: e.name),
    policy.UnknownRevisionError: _not_found("REVISION", "PolicyRevision", lambda e: f"{e.name}@{e.digest}"),
    problems.DirectionStateError: _Row(Code.UNAVAILABLE, "DIRECTION_STATE_UNAVAILABLE"),
    policy.HistoryError: _Row(Code.UNAVAILABLE, "POLICY_STATE_UNAVAILABLE"),
    problems.UnauthenticatedError: _Row(Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
    problems.RoleMissingError: _Row(
        Code.PERMISSION_DENIED,
        "ROLE_MISSING",
        metadata=lambda e: {key: value for key, value in (("role", e.role), ("method", e.method)) if value},
    ),
    # Limits and deadlines.
    engine.QueueFullError: _Row(
        Code.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        lambda e: f"the queue is full: {e}",
        details=_quota(lambda _: "queue"),
        retry_after=lambda e: e.retry_after,
    ),
    problems.BusyError: _Row(
        Code.RESOURCE_EXHAUSTED,
        lambda e: e.reason,
        details=_quota(lambda e: e.subject),
        retry_after=lambda e: e.retry_after,
    ),
    directions.DirectionLimitError: _Row(
        Code.RESOURCE_EXHAUSTED,
        "DIRECTION_LIMIT",
        details=_quota(lambda e: e.limit),
        metadata=lambda e: {"limit": e.limit, "most": str(e.most)},
    ),
    problems.MessageTooLargeError: _Row(
        Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", metadata=lambda e: {"limit_bytes": str(e.most)}
    ),
    problems.SlowReaderError: _Row(
        Code.RESOURCE_EXHAUSTED, "SLOW_READER", metadata=lambda e: {"limit_tokens": str(e.limit)}
    ),
    problems.StalledReaderError: _Row(
        Code.RESOURCE_EXHAUSTED, "SLOW_READER", metadata=lambda e: {"limit_seconds": f"{e.seconds:g}"}
    ),
    problems.UnsentRequestError: _Row(
        Code.DEADLINE_EXCEEDED, "REQUEST_NOT_SENT", metadata=lambda e: {"limit_seconds": f"{e.seconds:g}"}
    ),
    engine.DeadlineExceededError: _Row(
        Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline passed before the request was done"
    ),
    engine.OutOfMemoryError: _OUT_OF_MEMORY,
    torch.OutOfMemoryError: _OUT_OF_MEMORY,
    # Errors of the server itself.
    problems.NotServingError: _Row(Code.UNAVAILABLE, lambda e: e.reason, retry_after=lambda e: e.retry_after),
    AuditUnavailableError: _Row(
        Code.UNAVAILABLE,
        "AUDIT_UNAVAILABLE",
        "the audit log cannot be written, and without its record no request is answered",
        retry_after=RETRY_SECONDS,
    ),
    engine.EngineStoppedError: _Row(
        Code.UNAVAILABLE,
        "ENGINE_RESTARTING",
        "the engine has stopped; the server restarts",
        retry_after=RETRY_SECONDS,
    ),
    engine.NonFiniteLogitsError: _Row(
        Code.INTERNAL, "NON_FINITE_LOGITS", "the model gave logits that are not finite, unsteered"
    ),
    NotImplementedError: _Row(Code.UNIMPLEMENTED, "UNIMPLEMENTED", "this server does not offer the method"),
}


def describe(error: BaseException) -> Problem:
    """The problem of an exception; one that is not in the table becomes INTERNAL with an error_id.

    The text of such an exception is not sent, since it may hold anything.
    """
    for kind, row in _TABLE.items():
        if isinstance(error, kind):
            return row.problem(error)
    return Problem(
        Code.INTERNAL,
        "INTERNAL_ERROR",
        "the server failed in a way that it did not foresee; its log has more under this error_id",
        {"error_id": uuid4().hex},
    )


def status(problem: Problem, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of a problem, with ErrorInfo, RequestInfo and whatever else applies.

    Each text is shortened and only the first violations are included, so that it fits into trailers.
    """
    metadata = {key: shortened(value) for key, value in problem.metadata.items()}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=problem.reason, domain=DOMAIN, metadata=metadata),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if problem.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(problem.retry_after * 1e9))
        details.append(retry)
    message = status_pb2.Status(code=problem.code.value[0], message=problem.message)
    for detail in (*details, *problem.details):
        message.details.add().Pack(detail)
    if problem.violations:
        room = MOST_STATUS_BYTES - message.ByteSize()
        message.details.add().Pack(_bad_request(problem.violations, room))
    return message


def _bad_request(violations: Sequence[tuple[str, str]], room: int) -> Message:
    """The first violations, as many as fit into `room` bytes, and at least one."""
    fields = error_details_pb2.BadRequest()
    for path, description in violations:
        fields.field_violations.add(field=shortened(path), description=shortened(description))
        if fields.ByteSize() > room and len(fields.field_violations) > 1:
            fields.field_violations.pop()
            break
    message: Message = fields
    return message


def shortened(text: str, most: int = LONGEST_DETAIL, escaped: int = 1) -> str:
    """As much of a text as fits into `most` bytes, with "..." at the end if it was cut.

    escaped: how many bytes a byte takes that is not printable ASCII. A lone surrogate, which no message can
    hold, becomes its escape.
    """
    text = text[: most + 1].encode(errors="backslashreplace").decode()
    plain = [" " <= char <= "~" and char != "%" for char in text]
    sizes = [
        1 if is_plain else escaped * len(char.encode()) for char, is_plain in zip(text, plain, strict=True)
    ]
    ends = list(accumulate(sizes))
    if not ends or ends[-1] <= most:
        return text
    return text[: bisect_right(ends, most - len("..."))] + "..."


def trailers(problem: Problem, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a problem: its status, and when to retry if that helps."""
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status(problem, request_id).SerializeToString())]
    if problem.retry_after is not None:
        metadata.append((PUSHBACK_KEY, str(math.ceil(problem.retry_after * 1000))))
    return tuple(metadata)
