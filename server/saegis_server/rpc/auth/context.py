"""The context of a call: what a transport tells of it beside its request."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class CallContext(Protocol):
    """What is known of a call, over gRPC or over HTTP. grpc's own context is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The headers that the client sent, with names in lower case."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What is known of the client's certificate."""

    def peer(self) -> str:
        """The client's address, such as ipv4:127.0.0.1:40000."""

    def time_remaining(self) -> Any:
        """How many seconds are left until the deadline; None if there is none."""
