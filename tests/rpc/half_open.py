"""A client that opens requests and never ends them: HTTP/2 by hand, since grpc's own client cannot do it."""

import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _WINDOW = 0, 1, 3, 4, 8
_ACKNOWLEDGES, _END_HEADERS = 1, 4
_INITIAL_WINDOW = 65535


class HalfOpen:
    """One connection. Every request announces `size` bytes and sends all but the last."""

    def __init__(self, target: str, size: int) -> None:
        host, _, port = target.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=2.0)
        self._socket.settimeout(0.2)
        self._size = size
        self._unread = b""
        self._window, self._stream_window = _INITIAL_WINDOW, _INITIAL_WINDOW
        self._windows: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self.reset: set[int] = set()
        self.headers: set[int] = set()
        self.sent = 0
        self._frame(_SETTINGS, 0, 0, b"")

    def open(self, number: int, path: str) -> None:
        """Open a request with the headers that grpc wants, and no token."""
        stream = 2 * number + 1
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        self._frame(_HEADERS, _END_HEADERS, stream, block)
        self._windows[stream] = self._stream_window
        self._left[stream] = self._size - 1
        self._data(stream, b"\0" + struct.pack(">I", self._size))

    def push(self) -> None:
        """Send what the server takes now."""
        self._receive()
        for stream in list(self._left):
            if stream in self.reset:
                del self._left[stream]
                continue
            while (size := min(16384, self._left[stream], self._windows[stream], self._window)) > 0:
                self._left[stream] -= size
                self._data(stream, bytes(size))

    def close(self) -> None:
        self._socket.close()

    def _data(self, stream: int, data: bytes) -> None:
        self._frame(_DATA, 0, stream, data)
        self._windows[stream] -= len(data)
        self._window -= len(data)
        self.sent += len(data)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        if kind == _SETTINGS and not flags:
            head = _PREFACE + head
        self._send_raw(head + payload)

    def _send_raw(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except TimeoutError:
                self._receive()

    def _receive(self) -> None:
        while True:
            try:
                got = self._socket.recv(65536)
            except TimeoutError:
                return
            if not got:
                return
            self._unread += got
            while len(self._unread) >= 9:
                length = int.from_bytes(self._unread[:3], "big")
                if len(self._unread) < 9 + length:
                    break
                kind, flags = self._unread[3], self._unread[4]
                stream = int.from_bytes(self._unread[5:9], "big") & 0x7FFFFFFF
                self._take(kind, flags, stream, self._unread[9 : 9 + length])
                self._unread = self._unread[9 + length :]
            if len(got) < 65536:
                return

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _WINDOW:
            more = int.from_bytes(payload, "big")
            if stream:
                self._windows[stream] = self._windows.get(stream, 0) + more
            else:
                self._window += more
        elif kind == _SETTINGS and not flags & _ACKNOWLEDGES:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                if name == 4:
                    for each in self._windows:
                        self._windows[each] += value - self._stream_window
                    self._stream_window = value
            self._frame(_SETTINGS, _ACKNOWLEDGES, 0, b"")
        elif kind == _HEADERS:
            self.headers.add(stream)
            if flags & 1:
                self.reset.add(stream)
        elif kind == _RST:
            self.reset.add(stream)
