"""An exchange: one request and its answer over HTTP, bounded in what is sent and how it is read."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from saegis_server.http.errors import Header
from saegis_server.rpc.server.intake import Intake, most_bytes
from saegis_server.rpc.server.limits import Holding
from saegis_server.rpc.wire.problems import MalformedRequestError, MessageTooLargeError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
#: Where a connection's transport stands in a scope, to cut off a client that does not read.
ABORT = "saegis.abort"
#: Answers of more bytes are waited for until the client has read most of them.
_LONG = 64 * 1024


class Exchange:
    """One request over HTTP. It is the context of the call that the request makes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, intake: Intake) -> None:
        self._scope, self._receive, self._send, self._intake = scope, receive, send, intake
        self._headers = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        ]
        self.has_begun = self._is_over = self.client_left = False

    # -- the context of the call ----------------------------------------------------------------------

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]]:
        """The headers, with names in lower case."""
        return self._headers

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Nothing: over HTTP a caller is known by a token."""
        return {}

    def peer(self) -> str:
        """The client's address."""
        host, port = self._scope.get("client") or ("unknown", 0)
        return f"http:{host}:{port}"

    def time_remaining(self) -> None:
        """No deadline: a client that waits no longer leaves."""

    # -- the request ----------------------------------------------------------------------------------

    @property
    def path_params(self) -> Mapping[str, str]:
        """What the route's pattern took of the path."""
        found: Mapping[str, str] = self._scope.get("path_params", {})
        return found

    @property
    def query(self) -> str:
        """The query, as it was sent."""
        return bytes(self._scope["query_string"]).decode("latin-1")

    @property
    def has_body(self) -> bool:
        """Whether the request is one with a body."""
        return bool(self._scope["method"] == "POST")

    def header(self, name: str) -> str:
        """A header, by its name in lower case; "" if it was not sent."""
        return next((value for key, value in self._headers if key == name), "")

    async def body(self, method: str, most: int, holding: Holding) -> bytes:
        """The body of a request of one of the contract's methods, JSON of at most so many bytes.

        Raises MessageTooLargeError, MalformedRequestError, UnsentRequestError and BusyError.
        """
        if self.header("content-type").partition(";")[0].strip().lower() != JSON:
            raise MalformedRequestError(f"the body must be JSON: send the header content-type: {JSON}")
        most = most_bytes(method, most)
        size, length = 0, self.header("content-length")
        if length.isdecimal() and int(length) > most:
            raise MessageTooLargeError(method, int(length), most)
        parts = []
        async with self._intake.receiving(method, holding):
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self.client_left = True
                    raise asyncio.CancelledError
                parts.append(message.get("body", b""))
                more, size = message.get("more_body", False), size + len(parts[-1])
                if size > most:
                    raise MessageTooLargeError(method, size, most)
        holding.add(size)
        return b"".join(parts)

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Cancel the block's task once the client has left. For after the body was read."""
        task = asyncio.current_task()

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if task is not None and not self._is_over:
                self.client_left = True
                task.cancel()

        watching = asyncio.ensure_future(watch())
        try:
            yield
        finally:
            watching.cancel()

    # -- the answer -----------------------------------------------------------------------------------

    async def begin(self, status: int, kind: str, headers: Iterable[Header] = ()) -> None:
        """Send the status and the headers."""
        self.has_begun = True
        pairs = [("content-type", kind), ("cache-control", "no-store"), *headers]
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def write(self, data: bytes, is_last: bool = False) -> None:
        """Send a piece of the body. Raises StalledReaderError for a client that does not read."""
        self._is_over = self._is_over or is_last
        piece = {"type": "http.response.body", "body": data, "more_body": not is_last}
        await self._intake.write(self._send(piece))

    async def answer(self, status: int, kind: str, data: bytes, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer. Raises StalledReaderError."""
        await self.begin(status, kind, [("content-length", str(len(data))), *headers])
        if len(data) > _LONG:
            await self.write(data)
            data = b""
        await self.write(data, is_last=True)

    async def abort(self) -> None:
        """Close the connection without waiting for the client to read what is left."""
        self._scope.get(ABORT, lambda: None)()
        # The loop tells the connection of its end some turns later.
        for _ in range(3):
            await asyncio.sleep(0)
