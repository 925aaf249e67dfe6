"""The listener: the gRPC server with its services, health, reflection, limits and keepalive."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # type: ignore[import-untyped]

from saegis.v1 import (
    audit_pb2_grpc,
    direction_pb2_grpc,
    feature_pb2_grpc,
    generation_pb2_grpc,
    model_pb2_grpc,
    policy_pb2_grpc,
)
from saegis_server.rpc.auth.roles import NEEDED, OWN_PREFIX
from saegis_server.rpc.server.address import UnixSocket, check_port
from saegis_server.rpc.server.config import ServerConfig, TLSFiles
from saegis_server.rpc.server.entrance import Entrance
from saegis_server.rpc.server.gate import Gate
from saegis_server.rpc.server.intake import Intake
from saegis_server.rpc.server.interceptor import OutermostInterceptor
from saegis_server.rpc.services.audit import AuditServicer
from saegis_server.rpc.services.directions import DirectionServicer
from saegis_server.rpc.services.features import FeatureServicer
from saegis_server.rpc.services.generation import GenerationServicer
from saegis_server.rpc.services.models import ModelServicer
from saegis_server.rpc.services.policies import PolicyServicer
from saegis_server.rpc.services.shared import Services

log = logging.getLogger("saegis.rpc")

#: The services of the contract.
SERVICES = tuple({name.split("/")[1]: None for name in NEEDED if name.startswith(OWN_PREFIX)})
#: The name under which newer clients ask for the contract.
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class Listener:
    """A bound gRPC server and its port. The contract's services can be added while it serves the open ones.

    Raises OSError if the address is taken or a certificate cannot be read.
    """

    def __init__(self, config: ServerConfig, entrance: Entrance, intake: Intake) -> None:
        interceptor = OutermostInterceptor(entrance, intake)
        self.server = grpc.aio.server(interceptors=[interceptor], options=_options(config))
        register_open(self.server, entrance.gate, config.reflection)
        self.services = _OwnHandlers()
        self.server.add_generic_rpc_handlers((self.services,))
        self._socket = None if config.unix is None else UnixSocket(config.unix)
        try:
            self.port = _bind(self.server, config, self._socket)
        except BaseException:
            self._release()
            raise

    async def stop(self, grace: float) -> None:
        """End running RPCs after `grace` seconds, and free the address."""
        await self.server.stop(grace)
        self._release()

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(frozen=True, slots=True)
class Servicers:
    """The servicers of the contract's services: one of each, whatever the calls come over."""

    generation: GenerationServicer
    features: FeatureServicer
    models: ModelServicer
    policies: PolicyServicer
    directions: DirectionServicer
    audit: AuditServicer


def register(server: Any, services: Services) -> Servicers:
    """Add the services of the contract to a server of grpc; their servicers, for whoever else calls them."""
    made = Servicers(
        GenerationServicer(services),
        FeatureServicer(services),
        ModelServicer(services),
        PolicyServicer(services),
        DirectionServicer(services),
        AuditServicer(services),
    )
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(made.generation, server)
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(made.features, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(made.models, server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(made.policies, server)
    direction_pb2_grpc.add_DirectionServiceServicer_to_server(made.directions, server)
    audit_pb2_grpc.add_AuditServiceServicer_to_server(made.audit, server)
    return made


def register_open(server: Any, gate: Gate, reflects: bool) -> None:
    """Add the services that need no model. reflects: whether clients may read the contract."""
    health_pb2_grpc.add_HealthServicer_to_server(gate.health, server)
    if not reflects:
        return
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    servicer = reflection.aio.ReflectionServicer((*SERVICES, health, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, _UnderName(server, REFLECTION_V1))


class _UnderName:
    """Registers a service under another name. grpcio-reflection offers only v1alpha, whose messages are the
    same as those of v1.
    """

    def __init__(self, server: Any, name: str) -> None:
        self._server, self._name = server, name

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Ignore these handlers, which hold the same methods under the original name."""

    def add_registered_method_handlers(self, _: str, handlers: dict[str, Any]) -> None:
        handler = grpc.method_handlers_generic_handler(self._name, handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_registered_method_handlers(self._name, handlers)


class _OwnHandlers(grpc.GenericRpcHandler):
    """The handlers of the contract's services, which may be registered after the server has started.

    Until then each RPC has a placeholder that is never reached, since the gate admits nobody.
    """

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Ignore these handlers, since the generic ones hold the same methods."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method; None if there is no such method."""
        candidates = (handler.service(details) for handler in self._handlers)
        handler = next((candidate for candidate in candidates if candidate is not None), None)
        is_own = details.method in NEEDED and details.method.startswith(OWN_PREFIX)
        return grpc.unary_unary_rpc_method_handler(_not_loaded) if handler is None and is_own else handler


async def _not_loaded(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is starting")


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # Answers are bounded by the requests' own limits.
        ("grpc.max_send_message_length", -1),
        # A connection holds unread data for each of its streams.
        ("grpc.max_concurrent_streams", 256),
        # An unread stream holds a window of bytes, which would grow to megabytes by itself.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * 1024),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 10 * 60_000),
        # Clients then connect again and present their certificate again; running RPCs are not cut off.
        ("grpc.max_connection_age_ms", 60 * 60_000),
        # Without it a second server on the same port would silently share its calls.
        ("grpc.so_reuseport", 0),
        # A unary call sends no data while it generates: clients must be allowed to ping meanwhile.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A delayed process reads several pings at once, and would then end a good client's calls. grpc itself
        # bounds the memory that a flood of pings may take.
        ("grpc.http2.max_ping_strikes", 0),
        # Detects clients that have vanished, whose requests hold slots.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind(server: grpc.aio.Server, config: ServerConfig, unix: UnixSocket | None) -> int:
    """Bind the server; returns its port, 0 for a Unix socket."""
    if unix is not None:
        with unix.for_its_owner():
            _bind_to(server, f"unix:{unix.path.absolute()}", config.tls)
        return 0
    check_port(config.host, config.port, "--port")
    host = f"[{config.host}]" if ":" in config.host else config.host
    return _bind_to(server, f"{host}:{config.port}", config.tls)


def _bind_to(server: grpc.aio.Server, address: str, tls: TLSFiles | None) -> int:
    credentials = None if tls is None else _credentials(tls)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: it is taken, or a certificate is no PEM") from error


def _credentials(tls: TLSFiles) -> grpc.ServerCredentials:
    certificates = _Certificates(tls)
    needed = tls.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(certificates.read(), certificates.current, needed)


class _Certificates:
    """The contents of the certificate files. Changed files are read again, without a restart."""

    def __init__(self, tls: TLSFiles) -> None:
        self._tls = tls
        self._seen = self._times()
        self._good = self.read()

    def _times(self) -> tuple[int, ...]:
        paths = (self._tls.cert, self._tls.key, self._tls.client_ca)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Read the files. Raises OSError."""
        tls = self._tls
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.read_bytes(), tls.cert.read_bytes())],
            root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
        )

    def current(self) -> grpc.ServerCertificateConfiguration:
        """The certificates for a new connection. If files cannot be read, the last good ones are used."""
        try:
            if (times := self._times()) != self._seen:
                self._good, self._seen = self.read(), times
        except OSError as error:
            log.error("certificates could not be renewed: %s", error)
        return self._good
