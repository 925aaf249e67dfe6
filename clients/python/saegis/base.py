"""What both clients share: their settings, deadlines, metadata and health checks."""

import math
import os
from dataclasses import dataclass
from typing import ClassVar

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from saegis.channel import TLS, channel_credentials, channel_options, checked_target
from saegis.errors import DeadlineExceeded, NotFound, SaegisError, Unavailable
from saegis.unreached import Reach

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# grpc.health.v1's messages each hold one field, number 1, of these types; the wire format is the same.
HealthRequest = StringValue
HealthResponse = Int32Value
SERVING = 1
GENERATION_SERVICE = "saegis.v1.GenerationService"
HEALTH_TIMEOUT_SECONDS = 5.0
DEFAULT_TARGET = "127.0.0.1:50051"
#: Environment variables with the target and the token of clients that are given none.
SERVER_VARIABLE, TOKEN_VARIABLE = "SAEGIS_SERVER", "SAEGIS_TOKEN"


class BaseClient:
    """The checked settings of a client, and what follows from them."""

    _is_async: ClassVar[bool] = False

    def __init__(
        self,
        target: str | None = None,
        *,
        tls: TLS | None = None,
        insecure: bool = False,
        token: str | None = None,
        timeout: float | None = None,
        max_attempts: int = 4,
        keepalive_seconds: float = 30.0,
    ) -> None:
        """Prepare a client of the server at `target`, such as "127.0.0.1:50051" or "unix:/run/saegis.sock".

        Args:
            target: a gRPC target: host and port, or a Unix socket. None: that in SAEGIS_SERVER, else
                127.0.0.1:50051.
            tls: certificates. Without it only loopback targets are reached unencrypted.
            insecure: reach any target unencrypted. Anyone on the network path can read prompts and token.
            token: a bearer token, sent with every call. None: that in SAEGIS_TOKEN, if any; "": none.
            timeout: the default deadline of a call in seconds. None: calls wait as long as the server works.
            max_attempts: how often to try a call that fails with UNAVAILABLE, from 1 to 5.
            keepalive_seconds: how often to ping a silent connection. Proxies may refuse less than 10.

        Raises:
            ValueError: for an invalid target or token, for settings that contradict each other or are out of
                range.
            OSError: for a certificate file that cannot be read.
        """
        self.target = checked_target(own_target() if target is None else target)
        self._timeout = checked_timeout(timeout)
        token = own_token() if token is None else checked_token(token)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._options = channel_options(
            self.target, max_attempts=max_attempts, keepalive_seconds=keepalive_seconds, tls=tls
        )
        self._credentials = channel_credentials(self.target, tls, insecure)
        certified = tls is not None and tls.cert is not None
        self._reach = Reach(self.target, self._credentials is not None, certified)
        self._open()

    def _open(self) -> None:
        """Make the channel, if that is possible now."""

    def _deadline(self, timeout: float | None) -> float | None:
        """The call's own timeout or the client's, in seconds; infinity means none."""
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        return None if seconds is None or math.isinf(seconds) else seconds


def own_target() -> str:
    """The target in the environment or, without one, the default."""
    return os.environ.get(SERVER_VARIABLE) or DEFAULT_TARGET


def own_token() -> str:
    """The token in the environment, empty if there is none. Raises ValueError as `checked_token` does."""
    return checked_token(os.environ.get(TOKEN_VARIABLE, ""))


def checked_token(token: str) -> str:
    """The token. Raises ValueError, without quoting it, for one that no header can hold."""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token cannot be sent: a token is printable ASCII on one line, without spaces")
    return token


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout in seconds. Raises ValueError unless it is positive."""
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be positive, not {timeout}")
    return timeout


def why_not_ready(answer: HealthResponse | SaegisError) -> str:
    """Why a server is not ready, from its answer or from a failed check; empty if it is ready.

    Raises the error unless it means that the server is not ready.
    """
    if not isinstance(answer, SaegisError):
        return "" if answer.value == SERVING else "it does not serve yet"
    if isinstance(answer, Unavailable | NotFound | DeadlineExceeded):
        return str(answer)
    raise answer


@dataclass(slots=True)
class Patience:
    """The pauses between health checks, growing from 50 ms to 1 s, and the end of waiting."""

    target: str
    deadline: float
    """When to give up, in seconds on the clock of `pause`'s argument `now`."""
    pause_seconds: float = 0.05

    def pause(self, now: float, why: str) -> float:
        """How long to pause now, in seconds; why: why the server is not ready.

        Raises DeadlineExceeded once the deadline has passed.
        """
        if now >= self.deadline:
            raise DeadlineExceeded(f"the server at {self.target} did not become ready in time: {why}")
        pause = min(self.pause_seconds, self.deadline - now)
        self.pause_seconds = min(1.0, self.pause_seconds * 2)
        return pause
