"""Authorization: who calls an RPC, and whether they may. It comes before anything of the request is read."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from saegis_server.rpc.auth.context import CallContext
from saegis_server.rpc.auth.identities import IdentitiesFile
from saegis_server.rpc.auth.identity import ANONYMOUS, Identity, identity
from saegis_server.rpc.auth.roles import EVERYBODY, NEEDED
from saegis_server.rpc.wire.problems import RoleMissingError, UnauthenticatedError
from saegis_server.telemetry.metrics import Metrics

log = logging.getLogger("saegis.rpc")
TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header
_SCHEME = "bearer"


class Authorization:
    """Admits callers by the table of roles. Without `identities` all are anonymous and have every role."""

    def __init__(
        self,
        identities: IdentitiesFile | None,
        metrics: Metrics,
        failed: Callable[[str, str, str], None] = lambda method, peer, reason: None,
    ) -> None:
        """`failed` is called at each failed authentication with the method, the peer and the reason."""
        self._identities = identities
        self._metrics = metrics
        self._failed = failed
        if identities is None:
            metrics.open_to_all.set(1.0)

    def admit(self, method: str, context: CallContext) -> None:
        """Authenticate the caller and set the RPC's identity. Reads nothing of the request.

        Raises UnauthenticatedError, and RoleMissingError if the caller lacks the role or the table lacks the
        method.
        """
        if method in EVERYBODY:
            return
        caller = self._caller(method, context)
        needed = NEEDED.get(method)
        if needed is None:
            raise RoleMissingError("", method)
        caller.require(needed.role, method)
        identity.set(caller)

    def check(self, method: str, request: Any) -> None:
        """Raise RoleMissingError if the caller lacks a role that the request's fields need."""
        if (needed := NEEDED.get(method)) is not None:
            for role, field in needed.further_roles(request):
                identity.get().require(role, method, field)

    def _caller(self, method: str, context: CallContext) -> Identity:
        if self._identities is None:
            return ANONYMOUS
        try:
            return self._authenticated(context, self._identities)
        except UnauthenticatedError as error:
            self._metrics.count_authentication_failure(error.kind)
            log.warning(
                "authentication failed: method=%s peer=%s reason=%s", method, context.peer(), error.kind
            )
            self._failed(method, context.peer(), error.kind)
            raise

    def _authenticated(self, context: CallContext, file: IdentitiesFile) -> Identity:
        """The caller, by the token or, if none is sent, by the certificate."""
        identities = file.current()
        sent = [value for key, value in context.invocation_metadata() or () if key == TOKEN_KEY]
        if sent:
            caller = identities.of_token(token_of(sent))
            if caller is None:
                raise UnauthenticatedError("token", "the bearer token is nobody's whom this server knows")
            return caller
        names = certificate_names(context.auth_context())
        if not names:
            raise UnauthenticatedError(
                "missing", "say who you are: send a bearer token, or connect with a client certificate"
            )
        named = identities.of_certificate(names)
        if len(named) != 1:
            raise UnauthenticatedError(
                "certificate",
                "the client certificate names several principals"
                if named
                else "the client certificate names nobody whom this server knows",
            )
        return next(iter(named))


def token_of(sent: Sequence[str | bytes]) -> str:
    """The token of the `authorization` headers; "" if they hold none. No valid token is empty."""
    header = sent[0] if len(sent) == 1 else ""
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    scheme, _, token = text.strip().partition(" ")
    return token.strip() if scheme.lower() == _SCHEME else ""


#: How many certificates' names are cached.
_REMEMBERED = 1024


def certificate_names(facts: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The names of the verified client certificate of a connection, from its auth context.

    These are its subject alternative names (URIs, DNS names, mail and IP addresses) or, without any, its
    common names. They are read from the certificate itself, since grpc cuts a name at a NUL. Raises
    UnauthenticatedError if a name of either kind has characters that cannot be printed.
    """
    return tuple(name for pem in facts.get("x509_pem_cert", ()) for name in _names(bytes(pem)))


@lru_cache(_REMEMBERED)
def _names(pem: bytes) -> tuple[str, ...]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        common = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternative = _alternative(certificate)
    except ValueError as error:
        raise UnauthenticatedError("certificate", "the client certificate's names cannot be read") from error
    if not all(name.isprintable() for name in (*common, *(alternative or ()))):
        raise UnauthenticatedError(
            "certificate", "a name of the client certificate has characters that cannot be printed"
        )
    return tuple(common if alternative is None else alternative)


def _alternative(certificate: x509.Certificate) -> list[str] | None:
    """The subject alternative names of the kinds that a principal can have; None without the extension."""
    try:
        extension = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return None
    kinds = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name, x509.IPAddress)
    listed = extension if isinstance(extension, x509.SubjectAlternativeName) else ()
    return [str(name.value) for name in listed if isinstance(name, kinds)]
