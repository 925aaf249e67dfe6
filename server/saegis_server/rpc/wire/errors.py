"""The status table: which gRPC status, with which google.rpc details, each exception becomes.

What a request names and what does not exist here (an SAE, a feature by index or label, a site, a policy, a
revision) is NOT_FOUND, with its ResourceInfo and the field that names it. A value that is malformed, out of
its range or leaves open what is meant is INVALID_ARGUMENT. Two things that exist and do not belong together
(an SAE and a site) are FAILED_PRECONDITION.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from uuid import uuid4

import grpc
import torch
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from saegis_server.audit.errors import AuditUnavailableError
from saegis_server.engine import api as engine
from saegis_server.policy import errors as policy
from saegis_server.policy.decide.disclosure import revisions_told
from saegis_server.policy.store import errors as store
from saegis_server.rpc.auth.identity import current_audience
from saegis_server.rpc.wire import problems
from saegis_server.sae import catalog
from saegis_server.steering.program import SteeringError

DOMAIN = "saegis.dev"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DETAILS_KEY = "grpc-status-details-bin"
#: How long to wait before a retry after what ends by itself soon: a restart, another request's memory.
RETRY_SECONDS = 1.0
#: Trailers have little room, and a message may quote what the caller sent: beyond 8 KiB a client sees
#: RESOURCE_EXHAUSTED and nothing else. So much is told of a message, in bytes as it is sent, where each byte
#: beyond printable ASCII takes three; of each text of the details; and of the status with all its details.
LONGEST_MESSAGE, LONGEST_DETAIL, MOST_STATUS_BYTES = 1000, 300, 3600


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the table, filled in: what the client is told."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after: float | None = None
    details: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", shortened(self.message, LONGEST_MESSAGE, escaped=3))


def describe(error: BaseException) -> Problem:
    """The problem that an exception stands for; what nobody foresaw becomes INTERNAL with an error_id.

    Nothing of an unforeseen exception's text is told: it may hold anything.
    """
    for kind, row in _TABLE:
        if isinstance(error, kind):
            return row(error)
    return Problem(
        grpc.StatusCode.INTERNAL,
        "INTERNAL_ERROR",
        "the server failed in a way that it did not foresee; its log has more under this error_id",
        {"error_id": uuid4().hex},
    )


def status(problem: Problem, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status of a problem, with ErrorInfo, RequestInfo and whatever else applies.

    Each text is shortened, and of many violations only the first are told, so that it fits into trailers.
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
    """The first violations, as many as there is room for, and at least one."""
    fields = error_details_pb2.BadRequest()
    for path, description in violations:
        fields.field_violations.add(field=shortened(path), description=shortened(description))
        if fields.ByteSize() > room and len(fields.field_violations) > 1:
            fields.field_violations.pop()
            break
    message: Message = fields
    return message


def shortened(text: str, most: int = LONGEST_DETAIL, escaped: int = 1) -> str:
    """As much of a text as fits into `most` bytes, with "..." where something is left out.

    escaped: how many bytes each byte takes that is not printable ASCII. A lone surrogate, which no message
    can hold, is told as its escape.
    """
    text = text[: most + 1].encode(errors="backslashreplace").decode()
    plain = [" " <= char <= "~" and char != "%" for char in text]
    sizes = [1 if each else escaped * len(char.encode()) for char, each in zip(text, plain, strict=True)]
    ends = list(accumulate(sizes))
    if not ends or ends[-1] <= most:
        return text
    return text[: bisect_right(ends, most - len("..."))] + "..."


def trailers(problem: Problem, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata of a problem: its status, and when to retry where that helps."""
    found: list[tuple[str, str | bytes]] = [(DETAILS_KEY, status(problem, request_id).SerializeToString())]
    if problem.retry_after is not None:
        found.append((PUSHBACK_KEY, str(math.ceil(problem.retry_after * 1000))))
    return tuple(found)


def _field(error: engine.FieldError) -> Problem:
    return _invalid("FIELD_INVALID", error.field, error.description)


def _invalid(reason: str, path: str, description: str, metadata: Mapping[str, str] | None = None) -> Problem:
    return Problem(
        grpc.StatusCode.INVALID_ARGUMENT,
        reason,
        f"{path}: {description}",
        metadata or {},
        ((path, description),),
    )


def _context_length(error: problems.ContextLengthError) -> Problem:
    limits = {"prompt_tokens": str(error.tokens), "max_context_tokens": str(error.max_length)}
    return _invalid("CONTEXT_LENGTH_EXCEEDED", error.field, error.description, limits)


def _conflict(error: problems.ConflictError) -> Problem:
    paths = (error.field, *error.others)
    return Problem(
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELDS_CONTRADICT",
        f"{error.field}: {error.description}",
        violations=tuple((path, error.description) for path in paths),
    )


def _malformed(error: problems.MalformedRequestError) -> Problem:
    return Problem(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST", str(error))


def _steering(error: SteeringError) -> Problem:
    return _invalid("FIELD_INVALID", "steering", str(error), {"site": error.site})


def _diverged(error: engine.SteeringDivergedError) -> Problem:
    return _invalid("STEERING_DIVERGED", "steering", str(error))


def _unknown_sae(error: catalog.UnknownSAEError) -> Problem:
    return _not_found("SAE", "Sae", error.sae, error.description, error.field)


def _unknown_feature(error: catalog.UnknownFeatureError) -> Problem:
    return _not_found("FEATURE", "Feature", f"{error.sae}/{error.feature}", error.description, error.field)


def _unknown_site(error: problems.UnknownSiteError) -> Problem:
    return _not_found("SITE", "Site", error.site, error.description, error.field)


def _ambiguous(error: catalog.AmbiguousFeatureError) -> Problem:
    return _invalid("FIELD_INVALID", error.field, error.description)


def _not_at_site(error: catalog.SAENotAtSiteError) -> Problem:
    details = _precondition("SAE_NOT_AT_SITE", error.sae, error.description)
    return Problem(
        grpc.StatusCode.FAILED_PRECONDITION,
        "SAE_NOT_AT_SITE",
        f"{error.field}: {error.description}",
        violations=((error.field, error.description),),
        details=(details,),
    )


def _unprepared(error: problems.PreconditionError) -> Problem:
    details = _precondition(error.kind, error.subject, error.description)
    return Problem(grpc.StatusCode.FAILED_PRECONDITION, error.kind, error.description, details=(details,))


def _precondition(kind: str, subject: str, description: str) -> Message:
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type=kind, subject=shortened(subject), description=shortened(description))
    message: Message = failure
    return message


def _in_flight(error: problems.InFlightError) -> Problem:
    resource = _resource("Request", error.request_id, str(error))
    return Problem(
        grpc.StatusCode.ALREADY_EXISTS, "REQUEST_IN_FLIGHT", f"request_id: {error}", details=(resource,)
    )


def _denied(error: problems.PolicyDeniedError) -> Problem:
    audience = current_audience()
    denials = audience.denials(error.decision)
    told = [each for each in denials if each.rule]
    message, metadata = "the operator's policy denies the request", {"decision_id": error.decision_id}
    if told:
        message += f": {_first([each.message for each in told])}"
        metadata |= {"policy": told[0].policy, "rule": told[0].rule, "denials": str(len(told))}
    if revision := revisions_told(error.decision, audience):
        metadata["revision"] = revision
    fields = [
        (each.field, f"{each.policy}/{each.rule}: {each.message}" if each.rule else each.message)
        for each in denials
        if each.field
    ]
    return Problem(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", message, metadata, tuple(fields))


def _policy(error: policy.PolicyError) -> Problem:
    return _rejected(error, grpc.StatusCode.INVALID_ARGUMENT, "POLICY_INVALID")


def _policy_signature(error: policy.SignatureError) -> Problem:
    return _rejected(error, grpc.StatusCode.PERMISSION_DENIED, "POLICY_SIGNATURE")


def _policy_serial(error: policy.SerialError) -> Problem:
    return _rejected(error, grpc.StatusCode.FAILED_PRECONDITION, "POLICY_SERIAL")


def _rejected(error: policy.PolicyError, code: grpc.StatusCode, reason: str) -> Problem:
    """A bundle that was not taken: as many of its problems as there is room for, and how many there are."""
    violations = []
    for each in error.problems:
        place = f"{each.file}:{each.line}" if each.line else each.file
        path = " ".join(part for part in (place, each.path) if part) or "bundle"
        violations.append((path, each.message))
    metadata = {"kind": error.kind, "problems": str(len(error.problems))}
    message = f"the bundle is not taken: {_first(list(map(str, error.problems)))}"
    return Problem(code, reason, message, metadata, tuple(violations))


def _first(messages: Sequence[str]) -> str:
    """The first message, short enough that its end is told too, and how many more there are."""
    more = len(messages) - 1
    return shortened(messages[0], LONGEST_MESSAGE // 2, escaped=3) + (f" (and {more} more)" if more else "")


def _stale_etag(error: store.StaleEtagError) -> Problem:
    return Problem(
        grpc.StatusCode.ABORTED,
        "REVISION_CONFLICT",
        str(error),
        {"policy": error.name},
        (("etag", "is not that of the policy in force"),),
    )


def _unknown_policy(error: store.UnknownPolicyError) -> Problem:
    return _not_found("POLICY", "Policy", error.name, str(error))


def _unknown_revision(error: store.UnknownRevisionError) -> Problem:
    return _not_found("REVISION", "PolicyRevision", f"{error.name}@{error.digest}", str(error))


def _not_found(what: str, kind: str, name: str, description: str, field: str = "") -> Problem:
    """What a request names, in its field where one is told, and what does not exist here."""
    return Problem(
        grpc.StatusCode.NOT_FOUND,
        f"{what}_NOT_FOUND",
        f"{field}: {description}" if field else description,
        violations=((field, description),) if field else (),
        details=(_resource(kind, name, description),),
    )


def _resource(kind: str, name: str, description: str) -> Message:
    resource: Message = error_details_pb2.ResourceInfo(
        resource_type=f"{DOMAIN}/{kind}", resource_name=shortened(name), description=shortened(description)
    )
    return resource


def _policy_state(error: store.HistoryError) -> Problem:
    return Problem(grpc.StatusCode.UNAVAILABLE, "POLICY_STATE_UNAVAILABLE", str(error))


def _unauthenticated(error: problems.UnauthenticatedError) -> Problem:
    return Problem(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", str(error))


def _role_missing(error: problems.RoleMissingError) -> Problem:
    return Problem(
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_MISSING",
        str(error),
        {key: value for key, value in (("role", error.role), ("method", error.method)) if value},
        ((error.field, str(error)),) if error.field else (),
    )


def _queue_full(error: engine.QueueFullError) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUEUE_FULL",
        f"the queue is full: {error}",
        retry_after=error.retry_after,
        details=(_quota("queue", error),),
    )


def _busy(error: problems.BusyError) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        error.reason,
        str(error),
        retry_after=error.retry_after,
        details=(_quota(error.subject, error),),
    )


def _quota(subject: str, error: Exception) -> Message:
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(subject=shortened(subject), description=shortened(str(error)))
    message: Message = failure
    return message


def _too_large(error: problems.MessageTooLargeError) -> Problem:
    limit = {"limit_bytes": str(error.most)}
    return Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", str(error), limit)


def _stalled_reader(error: problems.StalledReaderError) -> Problem:
    limit = {"limit_seconds": f"{error.seconds:g}"}
    return Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER", str(error), limit)


def _unsent(error: problems.UnsentRequestError) -> Problem:
    limit = {"limit_seconds": f"{error.seconds:g}"}
    return Problem(grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_NOT_SENT", str(error), limit)


def _slow_reader(error: problems.SlowReaderError) -> Problem:
    limit = {"limit_tokens": str(error.limit)}
    return Problem(grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER", str(error), limit)


def _out_of_memory(_: BaseException) -> Problem:
    return Problem(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OUT_OF_MEMORY",
        "the device has no memory left for this request",
        retry_after=RETRY_SECONDS,
    )


def _not_serving(error: problems.NotServingError) -> Problem:
    return Problem(grpc.StatusCode.UNAVAILABLE, error.reason, str(error), retry_after=error.retry_after)


def _audit_unavailable(_: AuditUnavailableError) -> Problem:
    return Problem(
        grpc.StatusCode.UNAVAILABLE,
        "AUDIT_UNAVAILABLE",
        "the audit log cannot be written, and without its record no request is answered",
        retry_after=RETRY_SECONDS,
    )


def _engine_stopped(_: engine.EngineStoppedError) -> Problem:
    return Problem(
        grpc.StatusCode.UNAVAILABLE,
        "ENGINE_RESTARTING",
        "the engine has stopped; the server restarts",
        retry_after=RETRY_SECONDS,
    )


def _deadline(_: engine.DeadlineExceededError) -> Problem:
    return Problem(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the deadline passed before the request was done",
    )


def _non_finite(_: engine.NonFiniteLogitsError) -> Problem:
    return Problem(
        grpc.StatusCode.INTERNAL, "NON_FINITE_LOGITS", "the model gave logits that are not finite, unsteered"
    )


def _unimplemented(_: NotImplementedError) -> Problem:
    return Problem(grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED", "this server does not offer the method")


#: The table; the first kind that fits wins, so subclasses come before their bases.
_TABLE: tuple[tuple[type[BaseException], Callable[..., Problem]], ...] = (
    (problems.MalformedRequestError, _malformed),
    (problems.ContextLengthError, _context_length),
    (problems.ConflictError, _conflict),
    (problems.UnknownSiteError, _unknown_site),
    (engine.FieldError, _field),
    (SteeringError, _steering),
    (engine.SteeringDivergedError, _diverged),
    (catalog.UnknownSAEError, _unknown_sae),
    (catalog.SAENotAtSiteError, _not_at_site),
    (catalog.UnknownFeatureError, _unknown_feature),
    (catalog.AmbiguousFeatureError, _ambiguous),
    (problems.PreconditionError, _unprepared),
    (problems.InFlightError, _in_flight),
    (problems.PolicyDeniedError, _denied),
    (policy.SignatureError, _policy_signature),
    (policy.SerialError, _policy_serial),
    (policy.PolicyError, _policy),
    (store.StaleEtagError, _stale_etag),
    (store.UnknownPolicyError, _unknown_policy),
    (store.UnknownRevisionError, _unknown_revision),
    (store.HistoryError, _policy_state),
    (problems.UnauthenticatedError, _unauthenticated),
    (problems.RoleMissingError, _role_missing),
    (engine.QueueFullError, _queue_full),
    (problems.BusyError, _busy),
    (problems.MessageTooLargeError, _too_large),
    (problems.SlowReaderError, _slow_reader),
    (engine.OutOfMemoryError, _out_of_memory),
    (problems.StalledReaderError, _stalled_reader),
    (problems.UnsentRequestError, _unsent),
    (torch.OutOfMemoryError, _out_of_memory),
    (problems.NotServingError, _not_serving),
    (AuditUnavailableError, _audit_unavailable),
    (engine.EngineStoppedError, _engine_stopped),
    (engine.DeadlineExceededError, _deadline),
    (engine.NonFiniteLogitsError, _non_finite),
    (NotImplementedError, _unimplemented),
)
