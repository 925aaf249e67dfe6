"""Principals: who may call a server, and the tokens and certificates that identify them."""

import hashlib
import secrets
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from saegis_server.rpc.auth.roles import Role

TOKEN_PREFIX = "saegis_"  # noqa: S105 - lets secret scanners recognize a token
TOKEN_BYTES = 32
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,127}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def new_token() -> str:
    """A token of 256 random bits. It is stored nowhere: a file of identities holds only its digest."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> str:
    """The SHA-256 of a text, in hexadecimal. A fast hash is enough, since tokens cannot be guessed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _listed(value: object) -> object:
    return value if isinstance(value, list | tuple) else (value,)


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("has characters that cannot be printed")
    return name


class Principal(BaseModel):
    """One principal. token_sha256: the digest of each of its tokens. certificate: names of its verified
    client certificates: a subject alternative name (a URI such as spiffe://domain/path, a DNS name) or, for a
    certificate without any, the common name. With two credentials one can be replaced without a gap.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    tenant: Name
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    token_sha256: Annotated[
        tuple[Annotated[str, Field(pattern=DIGEST_PATTERN)], ...], BeforeValidator(_listed)
    ] = ()
    certificate: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_printable)], ...],
        BeforeValidator(_listed),
    ] = ()
