"""Why a server was not reached. gRPC has one status for it; its message tells the causes apart."""

from enum import StrEnum
from typing import NamedTuple


class Unreached(StrEnum):
    """Why there was no connection: the values of `Unavailable.reason` in that case."""

    NO_SERVER = "NO_SERVER"
    """Nobody listens at the target."""
    UNKNOWN_HOST = "UNKNOWN_HOST"
    """The target's host has no address."""
    TLS_EXPECTED = "TLS_EXPECTED"
    """The client connected without TLS, and the server closed the connection."""
    TLS_NOT_OFFERED = "TLS_NOT_OFFERED"
    """The client connected with TLS, which the server does not speak."""
    SERVER_NOT_TRUSTED = "SERVER_NOT_TRUSTED"
    """No authority that the client trusts has signed the server's certificate, or it is not valid now."""
    SERVER_NAME_DIFFERS = "SERVER_NAME_DIFFERS"
    """The server's certificate is for another name."""
    CLIENT_CERTIFICATE_MISSING = "CLIENT_CERTIFICATE_MISSING"
    """The server closed the connection to a client without a certificate."""
    CLIENT_CERTIFICATE_REFUSED = "CLIENT_CERTIFICATE_REFUSED"
    """The server closed the connection to a client with a certificate."""
    CERTIFICATES_UNUSABLE = "CERTIFICATES_UNUSABLE"
    """The client's own files are no certificates, or the key does not belong to the certificate."""
    TLS_FAILED = "TLS_FAILED"
    """The TLS handshake failed in another way."""


class Reach(NamedTuple):
    """How a client reaches its server: where, whether over TLS, whether with a certificate of its own."""

    target: str
    encrypted: bool
    certified: bool


_MESSAGES = {
    Unreached.NO_SERVER: "no server listens at {target}: {cause}",
    Unreached.UNKNOWN_HOST: "the host of {target} has no address: {cause}",
    Unreached.TLS_EXPECTED: (
        "the server at {target} closed the connection, which was not encrypted: it seems to ask for TLS. "
        "Give the authority that signed its certificate (ca), or ask whether it is a Saegis server at all"
    ),
    Unreached.TLS_NOT_OFFERED: (
        "the server at {target} does not speak TLS, as this client does: reach it unencrypted (insecure, or "
        "on this machine without ca), or start it with a certificate"
    ),
    Unreached.SERVER_NOT_TRUSTED: (
        "the certificate of the server at {target} is not trusted: {cause}. Give the authority that "
        "has signed it (ca)"
    ),
    Unreached.SERVER_NAME_DIFFERS: (
        "the certificate of the server at {target} is for another name: reach the server by a name that the "
        "certificate bears (server_name says which to expect)"
    ),
    Unreached.CLIENT_CERTIFICATE_MISSING: (
        "the server at {target} closed the connection to a client without a certificate: it seems to ask for "
        "one. Give a certificate and its key (cert and key)"
    ),
    Unreached.CLIENT_CERTIFICATE_REFUSED: (
        "the server at {target} closed the connection: it seems to refuse the client's certificate (cert). "
        "Is it signed by the authority that the server asks for, and valid now?"
    ),
    Unreached.CERTIFICATES_UNUSABLE: (
        "the certificates given for {target} cannot be used: are ca, cert and key PEM files, and is the key "
        "that of the certificate?"
    ),
    Unreached.TLS_FAILED: "the TLS handshake with {target} failed: {cause}",
}


#: How gRPC says that no address can be reached: by which of its ways to choose among them.
_NOWHERE = ("failed to connect to all addresses", "connections to all backends failing")


def why_unreached(details: str, reach: Reach) -> tuple[Unreached, str] | None:
    """Why there was no connection, and what to do, from gRPC's message; None if there was one."""
    if "errors resolving" in details or "DNS resolution failed" in details:
        cause = details.rpartition(f"{reach.target}: ")[2].strip("[] ")
        return Unreached.UNKNOWN_HOST, _MESSAGES[Unreached.UNKNOWN_HOST].format(
            target=reach.target, cause=cause
        )
    if not any(words in details for words in _NOWHERE):
        return None
    why = _kind(details, reach)
    marker = "CERTIFICATE_VERIFY_FAILED" if why is Unreached.SERVER_NOT_TRUSTED else ": "
    cause = details.rpartition(marker)[2].strip(": ").removesuffix(": OK")
    return why, _MESSAGES[why].format(target=reach.target, cause=cause)


def _kind(details: str, reach: Reach) -> Unreached:
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return Unreached.SERVER_NOT_TRUSTED
    if "Hostname Verification" in details:
        return Unreached.SERVER_NAME_DIFFERS
    if "WRONG_VERSION_NUMBER" in details:
        return Unreached.TLS_NOT_OFFERED
    if "security handshaker" in details:
        return Unreached.CERTIFICATES_UNUSABLE
    if "Socket closed" in details or "reset by peer" in details:
        if not reach.encrypted:
            return Unreached.TLS_EXPECTED
        # Under TLS 1.3 a server reads the client's certificate last, so its alert comes too late to report.
        if reach.certified:
            return Unreached.CLIENT_CERTIFICATE_REFUSED
        return Unreached.CLIENT_CERTIFICATE_MISSING
    return Unreached.TLS_FAILED if "handshake" in details else Unreached.NO_SERVER
