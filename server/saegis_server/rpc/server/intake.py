"""The intake: receives requests and writes answers, with bounds on number, time and size.

Parsing a message blocks the event loop, for a time that grows with its fields and not with its bytes: two
million empty edits fit into 4 MB, and parsing them takes most of a second.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default

from saegis_server.rpc.auth.roles import EVERYBODY, NEEDED
from saegis_server.rpc.server.limits import RETRY_SECONDS, Holding
from saegis_server.rpc.server.threads import Turns, WorkPool
from saegis_server.rpc.wire.problems import (
    BusyError,
    MalformedRequestError,
    MessageTooLargeError,
    StalledReaderError,
    UnsentRequestError,
)

_Context = grpc.aio.ServicerContext[Any, Any]


class Intake:
    """Receives requests and writes the messages of streams. For the event loop only.

    At most `at_once` requests are received at once, and half as many of one tenant. For RPCs without
    authentication it is an eighth, of one address. A client must send and read within a bounded time.
    """

    def __init__(
        self,
        receive_seconds: float = 10.0,
        write_seconds: float = 60.0,
        at_once: int = 32,
        most_waiting: int = 4096,
    ) -> None:
        self._receive_seconds, self._write_seconds = receive_seconds, write_seconds
        self._known = Turns(at_once, most_waiting, self._full, max(1, at_once // 2))
        self._unknown = Turns(at_once, most_waiting, self._full, max(1, at_once // 8))
        # One at a time: each thread that computes in Python delays the event loop.
        self._counting = WorkPool("large requests", 1, most_waiting)

    async def receive(self, method: str, context: _Context, holding: Holding) -> bytes:
        """Read the one message of a request and count its bytes in `holding`.

        Raises UnsentRequestError, BusyError, MalformedRequestError unless there is exactly one message, and
        what `check_message` raises.
        """
        async with self.receiving(method, holding):
            data: Any = await context.read()
            more = data is not grpc.aio.EOF and await context.read() is not grpc.aio.EOF
        if more or not isinstance(data, bytes):
            raise MalformedRequestError(
                f"{method} takes one request message, not {'more' if more else 'none'}"
            )
        holding.add(len(data))
        await self.check(method, data, holding)
        return data

    @asynccontextmanager
    async def receiving(self, method: str, holding: Holding) -> AsyncIterator[None]:
        """Wait for a turn to receive a request, and bound how long the block may take to receive it.

        Raises UnsentRequestError and BusyError.
        """
        turns = self._unknown if method in EVERYBODY else self._known
        async with turns.turn(holding.caller.tenant):
            try:
                async with asyncio.timeout(self._receive_seconds):
                    yield
            except TimeoutError:
                raise UnsentRequestError(self._receive_seconds) from None

    async def check(self, method: str, data: bytes, holding: Holding) -> None:
        """As `check_message`; in a thread where that takes a while."""
        if needs_counting(method, data):
            await self._counting.run(holding.caller.tenant, check_message, method, data)
        else:
            check_message(method, data)

    async def write(self, writing: Awaitable[None]) -> None:
        """Wait until a piece of an answer is taken. Raises StalledReaderError if the client does not read."""
        try:
            async with asyncio.timeout(self._write_seconds):
                await writing
        except TimeoutError:
            raise StalledReaderError(self._write_seconds) from None

    def _full(self) -> BusyError:
        return BusyError("SERVER_LIMIT", "intake", "too many requests are coming in", RETRY_SECONDS)


#: The most fields of a message, nested ones included.
MOST_FIELDS = 32768
#: The most bytes of a request that has neither prompts nor a bundle.
SMALL_MESSAGE_BYTES = 64 * 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def needs_counting(method: str, data: bytes) -> bool:
    """Whether `check_message` has to count fields, which can take a tenth of a second."""
    # A field has two bytes or more.
    return _is_large(method) and len(data) > 2 * MOST_FIELDS


def most_bytes(method: str, max_message_bytes: int) -> int:
    """The most bytes of a method's request."""
    return max_message_bytes if _is_large(method) else SMALL_MESSAGE_BYTES


def _is_large(method: str) -> bool:
    """Whether a method's requests may be as large as max_message_bytes."""
    return (needed := NEEDED.get(method)) is not None and needed.large


def check_message(method: str, data: bytes) -> None:
    """Raise MessageTooLargeError or MalformedRequestError for a request with too many bytes or fields."""
    if not _is_large(method) and len(data) > SMALL_MESSAGE_BYTES:
        raise MessageTooLargeError(method, len(data), SMALL_MESSAGE_BYTES)
    if needs_counting(method, data):
        kind: Descriptor = Default().FindMethodByName(method.strip("/").replace("/", ".")).input_type
        if has_more_fields(data, kind, MOST_FIELDS):
            raise MalformedRequestError(f"the request has more than {MOST_FIELDS} fields")


def has_more_fields(data: bytes, kind: Descriptor, most: int) -> bool:
    """Whether a message of this kind has more than `most` fields, nested ones included.

    Malformed data is left to the parser: the count ends where it cannot be followed.
    """
    count = 0
    open_messages = [(0, len(data), kind)]
    while open_messages:
        at, end, message = open_messages.pop()
        fields = message.fields_by_number
        while at < end:
            count += 1
            if count > most:
                return True
            tag, at = _varint(data, at)
            wire = tag & 7
            if wire == _BYTES:
                length, at = _varint(data, at)
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    open_messages.append((at, min(at + length, end), field.message_type))
                at += length
            elif wire == _VARINT:
                _, at = _varint(data, at)
            else:
                at += {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
    return False


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and where it ends; beyond the end of the data every byte is 0."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return value, max(at, 1)
