"""The HTTP listener: the application with its routes, and uvicorn's server that runs it on the same loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Mounted
from uvicorn.protocols.http.h11_impl import H11Protocol

from saegis_server.http.answers import TokenTexts
from saegis_server.http.console import files
from saegis_server.http.endpoints import Face, Serving
from saegis_server.http.exchange import ABORT, Receive, Scope, Send
from saegis_server.http.openapi import Description
from saegis_server.http.presets import check_presets, read_presets
from saegis_server.http.routes import ROUTES
from saegis_server.http.tls import Renewed
from saegis_server.rpc.server.address import check_port
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.entrance import Entrance
from saegis_server.rpc.server.intake import Intake
from saegis_server.rpc.server.listener import Servicers
from saegis_server.rpc.services.shared import Services

log = logging.getLogger("saegis.http")
#: The most connections: each may hold an answer that is not read.
MOST_CONNECTIONS = 1024
#: How long a client may take to send the head of a request, and keep an idle connection, in seconds.
HEAD_SECONDS, IDLE_SECONDS = 10.0, 30
#: How much of an answer the system holds for a client that does not read, which would grow to megabytes.
UNREAD_BYTES = 128 * 1024
#: The most bytes of a request's head.
LARGEST_HEAD = 32 * 1024
#: How this machine's programs name it.
_LOOPBACK = frozenset(("localhost", "127.0.0.1", "[::1]"))
_POLL_SECONDS = 0.01


class HttpListener:
    """A bound HTTP server over the same entrance as gRPC. Use it on the event loop.

    Raises PresetError and OSError for presets that cannot be read.
    """

    def __init__(self, config: ServerConfig, entrance: Entrance, intake: Intake) -> None:
        self.port = 0
        self._config = config
        self._face = Face(entrance, intake, config.max_message_bytes)
        self._presets = read_presets(config.presets)
        self._server: _Server | None = None
        self._running: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError if the address is taken or a certificate cannot be read."""
        config = self._config
        check_port(config.http_host, config.http_port or 0, "--http-port")
        family = socket.AF_INET6 if ":" in config.http_host else socket.AF_INET
        bound = socket.create_server((config.http_host, config.http_port or 0), family=family, backlog=512)
        self.port = bound.getsockname()[1]
        server = self._server = _Server(_settings(config, application(config, self._face)))
        self._running = asyncio.ensure_future(server.serve(sockets=[bound]))
        while not server.started and not self._running.done():  # noqa: ASYNC110 - uvicorn sets a flag
            await asyncio.sleep(_POLL_SECONDS)
        if self._running.done():
            self._running.result()
        if config.tls is None and not config.is_http_loopback:
            log.warning(
                "listening on %s without TLS: whoever is on the way reads prompts and tokens",
                config.http_host,
            )

    def add(self, services: Services, servicers: Servicers) -> None:
        """Answer with these services. Raises PresetError for a preset that they cannot run."""
        check_presets(self._presets, services)
        self._face.serving = Serving(services, servicers, self._presets, TokenTexts(services.prompts))

    async def stop(self) -> None:
        """End what still runs, and free the address."""
        if self._server is not None and self._running is not None:
            self._server.should_exit = True
            await self._running


def make_face(config: ServerConfig, entrance: Entrance, intake: Intake) -> HttpListener | None:
    """The face of a server over HTTP; None where no port is asked for. Raises as `HttpListener`."""
    return None if config.http_port is None else HttpListener(config, entrance, intake)


def application(config: ServerConfig, face: Face) -> Starlette:
    """The application: every route of the table, health, and errors in one shape."""
    routes = [Mounted(route.path, route.make(face), methods=[route.verb]) for route in ROUTES]

    async def health(_: Request) -> Response:
        healthy = face.entrance.gate.is_healthy
        return JSONResponse({"status": "ok" if healthy else "unavailable"}, 200 if healthy else 503)

    if config.has_console:
        routes += files.routes()
    middleware = [Middleware(_OwnNames, config=config)]
    if config.http_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=config.http_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
        middleware.insert(0, cors)
    if config.reflection:
        routes.append(Mounted("/openapi.json", Description(face), methods=["GET"]))
    return Starlette(
        routes=[Mounted("/health", health, methods=["GET"]), *routes],
        middleware=middleware,
        exception_handlers={HTTPException: _not_routed},
    )


async def _not_routed(_: Request, error: Exception) -> Response:
    """The error of a path that is not there, or of a verb that it does not have."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    said = {404: "there is no such path", 405: "the path does not have this method"}.get(status, "not served")
    told = {"message": said, "type": "invalid_request_error", "param": None, "code": "not_served"}
    return JSONResponse({"error": told}, status, headers=headers)


class _OwnNames:
    """Refuses requests to other names than this machine's where nobody is asked who they are.

    A page of the web could otherwise reach the server through its visitor's browser, under a name of its own
    that it lets point to this machine.
    """

    def __init__(self, app: Any, config: ServerConfig) -> None:
        self._app = app
        self._names = None if config.identities is not None else _LOOPBACK | {config.http_host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._names is not None:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if name.lower() not in self._names:
                told = {"message": "the host must be localhost", "type": "invalid_request_error"}
                error = {"error": told | {"param": None, "code": "host_refused"}}
                await JSONResponse(error, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _settings(config: ServerConfig, app: Starlette) -> uvicorn.Config:
    renewed = None if config.tls is None else Renewed(config.tls)
    return uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        ssl_context_factory=None if renewed is None else lambda config, default: renewed.context,
    )


class _Server(uvicorn.Server):
    """Leaves signals to the process, which drains gRPC and HTTP together."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Connection(H11Protocol):
    """A connection that must send the head of each request within a time, and that can be cut off."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin; of too many connections an idle one makes room, or this one ends."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS and not self._make_room():
            transport.abort()
            return
        bare = transport.get_extra_info("socket")
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[ABORT] = transport.abort
            await inner(scope, receive, send)

        self.app, self.access_log = app, False
        self._await_head()

    def _make_room(self) -> bool:
        idle = (each for each in self.connections if isinstance(each, _Connection) and each.is_idle)
        found = next((each for each in idle if each is not self), None)
        if found is not None:
            found.transport.abort()
        return found is not None

    @property
    def is_idle(self) -> bool:
        """Whether no request of the connection is answered now."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read what came, and wait for the rest of a head only so long."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_waiting()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection, whether or not its last answer was read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
