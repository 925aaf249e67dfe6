"""How a client reaches its server: TLS or not, retries, keepalive, message sizes."""

import ipaddress
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import grpc

from saegis.version import __version__

SERVICES = ("saegis.v1.GenerationService", "saegis.v1.FeatureService", "saegis.v1.ModelService")
MAX_RECEIVE_BYTES = 64 * 2**20
#: A request up to this size is kept until its answer begins, to be sent to another server if this one dies:
#: as large as servers take them where nobody says otherwise. Of itself gRPC keeps none longer than 256 KiB.
RETRIED_BYTES = 4 * 2**20
_LONGEST_MS = 2**31 - 1
_FORMS = "give host:port, such as 127.0.0.1:50051, or unix:/path"
_ADDRESS = re.compile(
    r"\[(?P<bracketed>[^\[\]]+)\](?::(?P<port>.*))?"
    r"|(?P<name>[^:\[\]/]+)(?::(?P<port_of_name>[^:]*))?"
    r"|(?P<bare>[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*:[0-9A-Fa-f.:]*)"
)
ChannelOptions = list[tuple[str, str | int]]


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates for an encrypted connection, each as the path of a PEM file or as its bytes.

    Raises ValueError if only one of `cert` and `key` is given, OSError if a file cannot be read.
    """

    ca: str | Path | bytes | None = None
    """Certificates of the authorities to trust; None means the system's."""
    cert: str | Path | bytes | None = None
    """The client's own certificate chain, if the server asks for one."""
    key: str | Path | bytes | None = None
    """The private key of `cert`."""
    server_name: str | None = None
    """The name in the server's certificate, if it is not the target's host."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents as gRPC takes them."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))


def _read(pem: str | Path | bytes | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


def is_loopback(target: str) -> bool:
    """Whether a gRPC target is certainly on this machine: a loopback address, localhost or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    if (addresses := _addresses(target)) is not None:
        return all(map(is_loopback, addresses))
    host, _ = _host_and_port(target)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_credentials(target: str, tls: TLS | None, insecure: bool) -> grpc.ChannelCredentials | None:
    """Credentials for the target; None for an unencrypted connection.

    Connections to loopback targets without `tls`, and those with `insecure`, are not encrypted; all others
    are. Raises ValueError if both `tls` and `insecure` are given.
    """
    if tls is not None and insecure:
        raise ValueError("tls and insecure contradict each other: give one of them")
    if tls is None and (insecure or is_loopback(target)):
        return None
    return (tls or TLS()).credentials()


def checked_target(target: str) -> str:
    """The target. Raises ValueError for an invalid one, for which gRPC would wait in vain."""
    if not target.strip():
        raise ValueError(f"the target is empty: {_FORMS}")
    scheme, _, rest = target.partition(":")
    is_path = scheme in ("unix", "unix-abstract")
    if not target.isprintable() or (" " in target and not is_path):
        raise ValueError(f"the target {target!a} has a space or what cannot be printed: {_FORMS}")
    if is_path:
        if not rest.strip("/"):
            raise ValueError(f"the target {target!r} names no socket: {_FORMS}")
        return target
    if rest.startswith("//") and scheme.lower() in ("http", "https", "grpc", "grpcs", "tcp"):
        raise ValueError(f"the target {target!r} is a URL: {_FORMS}")
    if (addresses := _addresses(target)) is not None:
        for address in addresses:
            checked_target(address)
        return target
    if scheme in ("vsock", "xds") or "," in rest or re.match("dns://[^/]", target):
        return target  # Rare forms that gRPC knows too.
    host, port = _host_and_port(target)
    if not host:
        raise ValueError(f"the target {target!r} names no host: {_FORMS}")
    if port is not None and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16):
        raise ValueError(f"the target {target!r} has no port from 1 to 65535: {_FORMS}")
    return target


def _addresses(target: str) -> list[str] | None:
    """Each of the servers of a list such as ipv4:10.0.0.1:50051,10.0.0.2:50051; None for one that is none."""
    scheme, _, rest = target.partition(":")
    if scheme not in ("ipv4", "ipv6") or "," not in rest:
        return None
    return [f"{scheme}:{address}" for address in rest.split(",")]


def _host_and_port(target: str) -> tuple[str, str | None]:
    """The host of a gRPC target without brackets, empty if there is none, and the port if it has one."""
    scheme, _, rest = target.partition(":")
    match = _ADDRESS.fullmatch(rest.lstrip("/") if scheme in ("dns", "ipv4", "ipv6") else target)
    if match is None:
        return "", None
    return match["bracketed"] or match["name"] or match["bare"] or "", match["port"] if match[
        "bracketed"
    ] else match["port_of_name"]


def channel_options(
    target: str, *, max_attempts: int, keepalive_seconds: float, tls: TLS | None
) -> ChannelOptions:
    """gRPC channel options for a target.

    A target on this machine is never reached through a proxy, whatever http_proxy says; for other targets,
    no_proxy names exceptions.

    Where the target has several addresses, calls go to them in turn, and to none that cannot be reached.
    Calls that fail with UNAVAILABLE before the answer has begun are tried up to `max_attempts` times, after
    a growing delay or the delay that the server asks for (`grpc-retry-pushback-ms`). gRPC makes at most 5
    attempts. Raises ValueError for fewer than 1 or more than 5 attempts, or a keepalive that is not positive.
    """
    if not 1 <= max_attempts <= 5:
        raise ValueError(f"max_attempts must be from 1 to 5, not {max_attempts}")
    if not (math.isfinite(keepalive_seconds) and keepalive_seconds > 0):
        raise ValueError(f"keepalive_seconds must be positive, not {keepalive_seconds}")
    options: ChannelOptions = [
        ("grpc.enable_retries", int(max_attempts > 1)),
        ("grpc.service_config", json.dumps(_service_config(max_attempts))),
        # While an answer is computed no data is sent; without pings a middlebox would drop the connection.
        ("grpc.keepalive_time_ms", min(_LONGEST_MS, max(1, round(keepalive_seconds * 1000)))),
        # A server on a busy machine may take seconds to answer a ping, and its calls would be lost.
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_rpc_retry_buffer_size", RETRIED_BYTES),
        # A starting server is found soon; gRPC's default is two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.primary_user_agent", f"saegis-python/{__version__}"),
    ]
    if is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _service_config(max_attempts: int) -> dict[str, object]:
    balanced: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if max_attempts == 1:
        return balanced
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    # Health checks are not retried, since they report what they find.
    names = [{"service": service} for service in SERVICES]
    return {
        **balanced,
        "methodConfig": [{"name": names, "retryPolicy": policy}],
        # As many as gRPC allows: all that a replica had in work fails with it at once, and half of this may.
        "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
    }
