"""How a client reaches its server: TLS or not, retries, keepalive, message sizes."""

import ipaddress
import json
import math
from dataclasses import dataclass
from pathlib import Path

import grpc

from saegis.version import __version__

SERVICES = ("saegis.v1.GenerationService", "saegis.v1.FeatureService", "saegis.v1.ModelService")
MAX_RECEIVE_BYTES = 64 * 2**20
ChannelOptions = list[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates for an encrypted connection, each as the path of a PEM file or as its bytes.

    Raises ValueError where only one of `cert` and `key` is given, OSError where a file cannot be read.
    """

    ca: str | Path | bytes | None = None
    """Certificates of the authorities to trust; None means the system's."""
    cert: str | Path | bytes | None = None
    """The client's own certificate chain, where the server asks for one."""
    key: str | Path | bytes | None = None
    """The private key of `cert`."""
    server_name: str | None = None
    """The name that the server's certificate bears, where it is not the target's host."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents as gRPC takes them."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))


def _read(pem: str | Path | bytes | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


def is_loopback(target: str) -> bool:
    """Whether a gRPC target surely lies on this machine: a loopback address, localhost or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme, _, rest = target.partition(":")
    address = rest.lstrip("/") if scheme in ("dns", "ipv4", "ipv6") else target
    host = address.rpartition(":")[0] if not address.endswith("]") else address
    host = (host or address).strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_credentials(target: str, tls: TLS | None, insecure: bool) -> grpc.ChannelCredentials | None:
    """Credentials for the target; None for an unencrypted connection.

    Unencrypted are loopback targets without `tls`, and those for which `insecure` says so. Every other
    connection is encrypted. Raises ValueError where both `tls` and `insecure` are given.
    """
    if tls is not None and insecure:
        raise ValueError("tls and insecure contradict each other: give one of them")
    if tls is None and (insecure or is_loopback(target)):
        return None
    return (tls or TLS()).credentials()


def channel_options(*, max_attempts: int, keepalive_seconds: float, tls: TLS | None) -> ChannelOptions:
    """gRPC channel options.

    Calls that fail with UNAVAILABLE before the answer has begun are tried up to `max_attempts` times, after
    a growing delay or after what the server asks for (`grpc-retry-pushback-ms`). gRPC itself makes at most 5
    attempts. Raises ValueError for fewer than 1 or more than 5 attempts, or a keepalive that is not positive.
    """
    if not 1 <= max_attempts <= 5:
        raise ValueError(f"max_attempts must be from 1 to 5, not {max_attempts}")
    if not (math.isfinite(keepalive_seconds) and keepalive_seconds > 0):
        raise ValueError(f"keepalive_seconds must be positive, not {keepalive_seconds}")
    options: ChannelOptions = [
        ("grpc.enable_retries", int(max_attempts > 1)),
        ("grpc.service_config", json.dumps(_service_config(max_attempts))),
        # An answer that is being computed sends no data: without pings a middlebox would drop the connection.
        ("grpc.keepalive_time_ms", round(keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_send_message_length", -1),
        # A server that starts is found soon, not after gRPC's own two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.primary_user_agent", f"saegis-python/{__version__}"),
    ]
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _service_config(max_attempts: int) -> dict[str, object]:
    if max_attempts == 1:
        return {}
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    # Health checks are not named: they report what they find.
    names = [{"service": service} for service in SERVICES]
    return {
        "methodConfig": [{"name": names, "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
