"""The listener: the gRPC server with its services, health, reflection, limits and keepalive."""

import logging
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from saegis.v1 import (
    feature_pb2,
    feature_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
)
from saegis_server.policy.audit_identity import IdentityFailures
from saegis_server.rpc.authorization import Authorization
from saegis_server.rpc.config import ServerConfig, TLSFiles
from saegis_server.rpc.features import FeatureServicer
from saegis_server.rpc.gate import Gate
from saegis_server.rpc.generation import GenerationServicer
from saegis_server.rpc.identities import IdentitiesFile
from saegis_server.rpc.intake import Intake
from saegis_server.rpc.interceptor import OutermostInterceptor
from saegis_server.rpc.models import ModelServicer
from saegis_server.rpc.policies import PolicyServicer
from saegis_server.rpc.services import Services

log = logging.getLogger("saegis.rpc")

SERVICES: tuple[str, ...] = tuple(
    descriptor.services_by_name[name].full_name
    for descriptor, name in (
        (generation_pb2.DESCRIPTOR, "GenerationService"),
        (feature_pb2.DESCRIPTOR, "FeatureService"),
        (model_pb2.DESCRIPTOR, "ModelService"),
        (policy_pb2.DESCRIPTOR, "PolicyService"),
    )
)


def listen(
    config: ServerConfig, services: Services, gate: Gate, intake: Intake
) -> tuple[grpc.aio.Server, int]:
    """A server that is bound but not started, and its port.

    Raises OSError if the address is taken or a certificate cannot be read, IdentitiesError.
    """
    authorization = _authorization(config, services)
    interceptor = OutermostInterceptor(gate, services.metrics, authorization, services.limiter, intake)
    server = grpc.aio.server(interceptors=[interceptor], options=_options(config))
    register(server, services, gate, config.reflection)
    return server, _bind(server, config)


def register(server: Any, services: Services, gate: Gate, reflects: bool) -> None:
    """Add all services to a server of grpc. reflects: whether clients may read the contract."""
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(services), server)
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(FeatureServicer(services), server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(ModelServicer(services), server)
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(PolicyServicer(services), server)
    health_pb2_grpc.add_HealthServicer_to_server(gate.health, server)
    if reflects:
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*SERVICES, health, reflection.SERVICE_NAME), server)


def _authorization(config: ServerConfig, services: Services) -> Authorization:
    metrics, audit = services.metrics, services.governor.audit
    if config.identities is None:
        log.info("no identities: every program of this machine may do everything")
        return Authorization(None, metrics)
    file = IdentitiesFile(config.identities, metrics)
    if file.current().names_certificates and (config.tls is None or config.tls.client_ca is None):
        log.warning("the identities name certificates, but without a client CA nobody is asked for one")
    if audit is None or config.audit is None or config.audit.identity_per_minute == 0:
        return Authorization(file, metrics)
    failures = IdentityFailures(audit, config.audit.identity_per_minute)
    return Authorization(file, metrics, failures.tell)


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        # Answers are bounded by the requests' own limits.
        ("grpc.max_send_message_length", -1),
        # What is not read yet of a connection is bounded by its streams.
        ("grpc.max_concurrent_streams", 256),
        # A stream that nobody reads yet holds a window of bytes; it would grow to megabytes by itself.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 * 1024),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 10 * 60_000),
        # Clients then connect again, and are asked for their certificate again; what runs is not cut off.
        ("grpc.max_connection_age_ms", 60 * 60_000),
        # Without it a second server on the same port would silently share its calls.
        ("grpc.so_reuseport", 0),
        # A unary call sends no data while it generates: clients must be allowed to ping meanwhile.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Find clients that have vanished: their requests hold slots.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    try:
        if config.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, _credentials(config.tls))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: the port is taken, or a certificate is no PEM") from error


def _credentials(tls: TLSFiles) -> grpc.ServerCredentials:
    certificates = _Certificates(tls)
    needed = tls.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(certificates.read(), certificates.current, needed)


class _Certificates:
    """The files' contents, read again when they have changed, so that they are renewed without a restart."""

    def __init__(self, tls: TLSFiles) -> None:
        self._tls = tls
        self._seen = self._times()
        self._good = self.read()

    def _times(self) -> tuple[int, ...]:
        paths = (self._tls.cert, self._tls.key, self._tls.client_ca)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The files as they are. Raises OSError."""
        tls = self._tls
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.read_bytes(), tls.cert.read_bytes())],
            root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
        )

    def current(self) -> grpc.ServerCertificateConfiguration:
        """Called for each new connection. Files that cannot be read leave the last good ones in force."""
        try:
            if (times := self._times()) != self._seen:
                self._good, self._seen = self.read(), times
        except OSError as error:
            log.error("certificates could not be renewed: %s", error)
        return self._good
