"""Errors as OpenAI's clients read them: the HTTP status, the headers and the body of a problem."""

import math
from typing import Any

from saegis_server.http.paths import Paths
from saegis_server.rpc.wire.errors import Code, Problem

Header = tuple[str, str]
#: The HTTP status of each gRPC status, and OpenAI's type of the error.
STATUSES: dict[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Code.UNAUTHENTICATED: (401, "authentication_error"),
    Code.PERMISSION_DENIED: (403, "permission_error"),
    Code.NOT_FOUND: (404, "invalid_request_error"),
    Code.ALREADY_EXISTS: (409, "conflict_error"),
    Code.ABORTED: (409, "conflict_error"),
    Code.FAILED_PRECONDITION: (422, "invalid_request_error"),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Code.CANCELLED: (499, "cancelled_error"),
    Code.INTERNAL: (500, "server_error"),
    Code.UNIMPLEMENTED: (501, "server_error"),
    Code.UNAVAILABLE: (503, "server_error"),
    Code.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
#: Reasons whose HTTP status is another one than that of their gRPC status.
_OWN_STATUS = {
    "MESSAGE_TOO_LARGE": (413, "invalid_request_error"),
    "REQUEST_NOT_SENT": (408, "timeout_error"),
}


def status_of(problem: Problem) -> int:
    """The HTTP status of a problem."""
    return _kind(problem)[0]


def _kind(problem: Problem) -> tuple[int, str]:
    return _OWN_STATUS.get(problem.reason) or STATUSES[problem.code]


def error_of(problem: Problem, paths: Paths) -> dict[str, Any]:
    """The `error` of a problem: OpenAI's members, and what the server tells beside them."""
    fields = [(paths.of(path), described) for path, described in problem.violations]
    return {
        "message": paths.told(problem.message, (path for path, _ in problem.violations)),
        "type": _kind(problem)[1],
        "param": fields[0][0] if fields else None,
        "code": problem.reason.lower(),
        "metadata": dict(problem.metadata),
        "violations": [{"param": path, "message": described} for path, described in fields],
    }


def headers_of(problem: Problem) -> list[Header]:
    """The headers of a problem: whether and when to try again, and how to say who one is."""
    headers = [("x-should-retry", "false" if problem.retry_after is None else "true")]
    if problem.retry_after is not None:
        headers.append(("retry-after-ms", str(math.ceil(problem.retry_after * 1000))))
        headers.append(("retry-after", str(max(1, math.ceil(problem.retry_after)))))
    if problem.code is Code.UNAUTHENTICATED:
        headers.append(("www-authenticate", "Bearer"))
    return headers
