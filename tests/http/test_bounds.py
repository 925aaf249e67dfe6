"""What a client may cost: bodies, heads, connections that break or are not read, and names of other hosts."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from saegis_server.http import listener
from saegis_server.http.body import MOST_VALUES
from tests.http.conftest import url_of
from tests.rpc.harness import Running, eventually, running

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "the river"}], "temperature": 0.0}


@contextmanager
def connected(server: Running) -> Iterator[socket.socket]:
    """A bare connection."""
    with socket.create_connection(("127.0.0.1", server.address.http_port or 0), timeout=20) as connection:
        yield connection


def request(
    body: bytes, path: str = "/v1/chat/completions", length: int | None = None, more: str = ""
) -> bytes:
    """A request as bytes."""
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {size}\r\n{more}\r\n".encode() + body


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def dribble(connection: socket.socket) -> None:
    """Send a head byte by byte, for ten seconds."""
    for _ in range(200):
        connection.sendall(b"G")
        time.sleep(0.05)


def post(server: Running, data: bytes, path: str = "chat/completions", **headers: str) -> dict[str, Any]:
    """The error of a body."""
    sent = {"content-type": "application/json"} | headers
    answer = httpx.post(f"{url_of(server)}/v1/{path}", content=data, headers=sent, timeout=30)
    error: dict[str, Any] = answer.json()["error"]
    return error | {"status": answer.status_code}


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "malformed_request"),
        (b"[]", 400, "malformed_request"),
        (b"{", 400, "malformed_request"),
        (b"\xff", 400, "malformed_request"),
        (b'{"a": 1, "a": 2}', 400, "malformed_request"),
        (b'{"model": "\\ud800"}', 400, "malformed_request"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "malformed_request"),
        (b'{"prompt": [' + b"1," * MOST_VALUES + b"1]}", 400, "malformed_request"),
        (b'{"prompt": "' + b"," * (MOST_VALUES + 1) + b'"}', 400, "field_invalid"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", 400, "malformed_request"),
        (b'{"prompt": "' + b"x" * (4 * 2**20) + b'"}', 413, "message_too_large"),
    ],
)
def test_a_body_is_bounded_and_strict(served: Running, data: bytes, status: int, code: str) -> None:
    error = post(served, data, "completions")
    assert (error["status"], error["code"]) == (status, code)


def test_a_body_without_its_kind_is_refused(served: Running) -> None:
    """A page of another origin can send plain text unasked, but no JSON."""
    error = post(served, json.dumps(ASK).encode(), **{"content-type": "text/plain"})
    assert error["code"] == "malformed_request"
    answer = httpx.options(
        f"{url_of(served)}/v1/chat/completions",
        headers={"origin": "https://example.org", "access-control-request-method": "POST"},
    )
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_another_name_of_this_machine_is_refused_where_nobody_is_asked_who_they_are(served: Running) -> None:
    for host in ("rebound.example.org", "127.0.0.1.example.org:80", ""):
        answer = httpx.get(f"{url_of(served)}/v1/models", headers={"host": host})
        assert answer.status_code == 421
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:80", "[::1]"):
        assert httpx.get(f"{url_of(served)}/v1/models", headers={"host": host}).status_code == 200


def test_web_pages_are_answered_where_the_operator_says_so() -> None:
    with running(http_port=0, http_origins=["https://example.org"]) as server:
        for origin, allowed in (("https://example.org", "https://example.org"), ("https://other.org", None)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answer = httpx.options(f"{url_of(server)}/v1/chat/completions", headers=headers)
            assert answer.headers.get("access-control-allow-origin") == allowed


def test_a_body_that_does_not_come_is_waited_for_so_long(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.server.intake, "_receive_seconds", 0.3)
    with connected(served) as connection:
        connection.sendall(request(b'{"model"', length=1000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")


def test_a_head_that_does_not_come_is_waited_for_so_long(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.5)
    began = time.monotonic()
    with connected(served) as silent, connected(served) as slow:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            dribble(slow)
        assert silent.recv(1) == b""
    assert time.monotonic() < began + 5.0


def test_too_large_a_head_is_refused(served: Running) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: " + b"x" * 100_000)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")


def test_idle_connections_make_room_and_busy_ones_do_not(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: not served.server.gate._inside)
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 4)
    held = [socket.create_connection(("127.0.0.1", served.address.http_port or 0)) for _ in range(40)]
    try:
        assert httpx.get(f"{url_of(served)}/health", timeout=5).status_code == 200
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0.0, 0.2])
def test_a_connection_that_breaks_frees_its_place(served: Running, stream: bool, after: float) -> None:
    body = json.dumps(ASK | {"max_tokens": 1900, "stream": stream}).encode()
    with connected(served) as connection:
        connection.sendall(request(body))
        if after:
            eventually(lambda: not served.is_idle())
        time.sleep(after)
    eventually(served.is_idle)


def test_a_body_that_breaks_off_leaves_nothing(served: Running) -> None:
    for _ in range(20):
        with connected(served) as connection:
            connection.sendall(request(b'{"model": ', length=100))
    eventually(lambda: served.services.limiter.inside == 0)


def test_a_stream_that_is_not_read_is_ended(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.server.intake, "_write_seconds", 0.5)
    fields = {"max_tokens": 1900, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 4}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.address.http_port or 0))
        connection.sendall(request(json.dumps(ASK | fields).encode()))
        eventually(lambda: not served.is_idle())
        eventually(served.is_idle, 60.0)
        connection.settimeout(20)
        told = read_all(connection)
        assert told.startswith(b"HTTP/1.1 200")
        assert not told.endswith(b"0\r\n\r\n")


def test_requests_on_one_connection_are_answered_in_turn(served: Running) -> None:
    body = json.dumps(ASK | {"max_tokens": 2}).encode()
    with connected(served) as connection:
        connection.sendall(request(body) + request(b"{") + request(body, more="connection: close\r\n"))
        told = read_all(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", told) == [b"200", b"400", b"200"]


def test_health_follows_the_server(served: Running) -> None:
    assert httpx.get(f"{url_of(served)}/health").json() == {"status": "ok"}
    with running(http_port=0) as server:
        served_url = url_of(server)
        server.on_loop(server.server.gate.set_unavailable("it is ill"))
        answer = httpx.get(f"{served_url}/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "unavailable"})
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served_url}/health")
