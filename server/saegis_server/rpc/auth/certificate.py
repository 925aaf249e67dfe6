"""Certificates: the names that a caller's own has, as the authority signed them."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtensionOID, NameOID

from saegis_server.rpc.wire.problems import UnauthenticatedError

#: How many certificates' names are remembered.
_REMEMBERED = 1024


def certificate_names(facts: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The names of the client certificate that the connection was verified with, from its auth context.

    The subject alternative names (URIs, DNS names, addresses of mail and IP); the common names where it has
    none. Read from the certificate, since grpc tells of a name only what stands before a NUL. Raises
    UnauthenticatedError for names with characters that cannot be printed, of whichever kind they are.
    """
    return tuple(name for pem in facts.get("x509_pem_cert", ()) for name in _names(bytes(pem)))


@lru_cache(_REMEMBERED)
def _names(pem: bytes) -> tuple[str, ...]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        common = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        alternative = _alternative(certificate)
    except ValueError as error:
        raise UnauthenticatedError("certificate", "the client certificate's names cannot be read") from error
    if not all(name.isprintable() for name in (*common, *(alternative or ()))):
        raise UnauthenticatedError(
            "certificate", "a name of the client certificate has characters that cannot be printed"
        )
    return tuple(common if alternative is None else alternative)


def _alternative(certificate: x509.Certificate) -> list[str] | None:
    """The subject alternative names that a principal can have; None for a certificate without any."""
    try:
        found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return None
    kinds = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name, x509.IPAddress)
    listed = found if isinstance(found, x509.SubjectAlternativeName) else ()
    return [str(each.value) for each in listed if isinstance(each, kinds)]
