"""Errors that the RPC layer itself raises: for malformed, contradictory, forbidden or untimely requests."""

from saegis_server.engine.api import FieldError
from saegis_server.policy.decide.decision import Decision


class MalformedRequestError(ValueError):
    """The request's bytes are no message of the method's type."""


class ContextLengthError(FieldError):
    """The prompt leaves no room for a completion."""

    def __init__(self, field: str, tokens: int, max_length: int) -> None:
        super().__init__(
            field, f"{tokens} tokens; prompt and completion together may have at most {max_length}"
        )
        self.tokens = tokens
        self.max_length = max_length


class ConflictError(FieldError):
    """Fields that contradict each other; `field` and `others` are their paths."""

    def __init__(self, field: str, others: tuple[str, ...], description: str) -> None:
        super().__init__(field, description)
        self.others = others


class UnknownSiteError(FieldError):
    """The server offers no site of the name `site`."""

    def __init__(self, field: str, description: str, site: str) -> None:
        super().__init__(field, description)
        self.site = site


class UnknownModelError(FieldError):
    """The server serves no model, and has no preset, of the name `model`."""

    def __init__(self, field: str, model: str) -> None:
        super().__init__(field, f"{model!r} is not served here")
        self.model = model


class UnknownDirectionError(FieldError):
    """The caller's tenant has no direction of this digest or name, and neither has the operator."""

    def __init__(self, field: str, reference: str) -> None:
        super().__init__(
            field, f"no direction {reference!r} is kept for this tenant; ListDirections tells which are"
        )
        self.reference = reference


class DirectionStateError(Exception):
    """The folder in which uploaded directions survive a restart cannot be written."""

    def __init__(self) -> None:
        super().__init__("the folder of directions cannot be written; nothing has changed")


class InFlightError(Exception):
    """A request of the same request_id is running."""

    def __init__(self, request_id: str) -> None:
        super().__init__("a request of this request_id is running")
        self.request_id = request_id


class PreconditionError(Exception):
    """The server is not set up for the request; `kind` and `subject` say what is missing, of what."""

    def __init__(self, kind: str, subject: str, description: str) -> None:
        super().__init__(description)
        self.kind = kind
        self.subject = subject
        self.description = description


class SlowReaderError(Exception):
    """The client reads its stream so slowly that more tokens wait than the server may hold."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} tokens were waiting to be read; the generation was cancelled")
        self.limit = limit


class NotServingError(Exception):
    """The server does not take the request now.

    reason: STARTING, DRAINING, ENGINE_RESTARTING or POLICY_REPLACED.
    """

    def __init__(self, reason: str, description: str, retry_after: float) -> None:
        super().__init__(description)
        self.reason = reason
        self.retry_after = retry_after


class PolicyDeniedError(Exception):
    """The operator's policies deny the request; `decision` says by which rules."""

    def __init__(self, decision_id: str, decision: Decision) -> None:
        super().__init__("; ".join(denial.message for denial in decision.denials))
        self.decision_id = decision_id
        self.decision = decision


class UnauthenticatedError(Exception):
    """The caller is not known. kind: what failed, in log and metric: missing, token or certificate."""

    def __init__(self, kind: str, description: str) -> None:
        super().__init__(description)
        self.kind = kind


class RoleMissingError(Exception):
    """The caller lacks a role; "" if no role would do. field: the request's field that needs the role."""

    def __init__(self, role: str, method: str = "", field: str = "") -> None:
        needs = f"needs the role '{role}', which the caller does not have"
        super().__init__(f"{field or method or 'the request'} {needs if role else 'is open to nobody'}")
        self.role = role
        self.method = method
        self.field = field


class MessageTooLargeError(Exception):
    """The request has more bytes than its method allows."""

    def __init__(self, method: str, size: int, most: int) -> None:
        super().__init__(f"the request has {size} bytes; {method} takes at most {most}")
        self.most = most


class BusyError(Exception):
    """The caller, its tenant or the server is at a limit; `subject` says whose limit it is.

    reason: WORK_QUEUE_FULL, TENANT_LIMIT, PRINCIPAL_LIMIT, SERVER_LIMIT or RATE_LIMITED.
    """

    def __init__(self, reason: str, subject: str, description: str, retry_after: float) -> None:
        super().__init__(description)
        self.reason = reason
        self.subject = subject
        self.retry_after = retry_after


class StalledReaderError(Exception):
    """The client has not read its stream for as long as the server waits."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing of the stream was read for {seconds:g} s; the request was ended")
        self.seconds = seconds


class UnsentRequestError(Exception):
    """The client has opened an RPC but not sent its request."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request did not come within {seconds:g} s")
        self.seconds = seconds
