"""The metrics endpoint: metrics in Prometheus's text format, and liveness and readiness, over plain HTTP."""

import asyncio
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry

from saegis_server.telemetry.exposition import Exposition

#: The most open connections; one more closes the oldest.
MOST_CONNECTIONS = 64
#: How long a client may take to send its request and read the answer, in seconds.
CONNECTION_SECONDS = 5.0
LARGEST_HEAD = 8192
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Unavailable"}
_PLAIN = "text/plain; charset=utf-8"


def _always() -> bool:
    return True


class MetricsEndpoint:
    """Serves `/metrics`, `/healthz` and `/readyz` in one thread, on a loop of its own.

    live, ready: called from that thread. Raises OSError if the port is taken.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        live: Callable[[], bool] = _always,
        ready: Callable[[], bool] = _always,
    ) -> None:
        self._exposition = Exposition(registry)
        self._probes = {"/healthz": live, "/readyz": ready}
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._serving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="saegis-metrics", daemon=True)
        self._thread.start()
        self._serving.wait()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        server = self._loop.run_until_complete(self._start())
        self._loop.call_soon(self._serving.set)
        self._loop.run_forever()
        self._loop.run_until_complete(self._end(server))
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=self._socket, limit=LARGEST_HEAD)

    async def _end(self, server: asyncio.Server) -> None:
        server.close()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Closed connections are released one turn of the loop later.
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - start_server makes one
        while len(self._connections) >= MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).cancel()
        self._connections[writer] = task
        try:
            async with asyncio.timeout(CONNECTION_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            # The client did not send its request or did not read the answer in time.
            pass
        except asyncio.LimitOverrunError:
            writer.write(_response(400, _PLAIN, b"the request is too long\n"))
        finally:
            self._connections.pop(writer, None)
            with suppress(OSError):
                writer.close()

    def _answer(self, head: str) -> bytes:
        first, _, rest = head.partition("\r\n")
        method, _, target = first.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response(405, _PLAIN, b"ask with GET\n")
        if path in self._probes:
            holds = self._probes[path]()
            response = _response(200 if holds else 503, _PLAIN, b"yes\n" if holds else b"no\n")
        elif path == "/metrics":
            headers = dict(line.lower().split(":", 1) for line in rest.split("\r\n") if ":" in line)
            response = _response(200, *self._exposition.text(headers.get("accept", "").strip()))
        else:
            response = _response(404, _PLAIN, b"there are /metrics, /healthz and /readyz\n")
        return response.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if method == "HEAD" else response


def _response(status: int, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body
