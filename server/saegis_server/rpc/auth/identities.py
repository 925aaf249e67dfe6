"""Identities: the principals that a server knows, with their credentials, from a YAML file."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from saegis_server.policy.decide.world import Callers
from saegis_server.policy.errors import PolicyError
from saegis_server.policy.schema.yaml_text import Document, Place, path_of, read_yaml
from saegis_server.problem import Problem
from saegis_server.rpc.auth.identity import ANONYMOUS, Identity
from saegis_server.rpc.auth.principals import Principal, token_digest
from saegis_server.telemetry.metrics import Metrics

log = logging.getLogger("saegis.rpc")

#: Names that records use for callers that are no principals.
RESERVED = frozenset((ANONYMOUS.name, "start"))
#: What a value must be, by key. pydantic's own message would be a regular expression.
_WANTED = {
    "name": "must be 1 to 128 letters, digits and . _ @ : / + -",
    "tenant": "must be 1 to 128 letters, digits and . _ @ : / + -",
    "token_sha256": "must be 64 hexadecimal digits, the SHA-256 of a token as 'saegis token new' tells it",
    "certificate": "must be a name of a certificate, in characters that can be printed, or a list of them",
}


class IdentitiesError(ValueError):
    """A file of identities that cannot be used; `problems` holds everything that is wrong, at least one."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    apiVersion: Literal["saegis.dev/v1"]
    kind: Literal["Identities"]
    principals: tuple[Principal, ...]


class Identities:
    """Principals by their credentials."""

    def __init__(self, tokens: Mapping[str, Identity], certificates: Mapping[str, Identity]) -> None:
        self._tokens = tokens
        self._certificates = certificates

    def of_token(self, token: str) -> Identity | None:
        """The owner of a token, which may be any text; None if it has none.

        Tokens have 256 random bits and are looked up by their digest, so timing reveals nothing about them.
        """
        identity = self._tokens.get(token_digest(token))
        return identity if token else None

    def of_certificate(self, names: Iterable[str]) -> frozenset[Identity]:
        """The principals with any of these names of a verified certificate; several if it is ambiguous."""
        return frozenset(identity for name in names if (identity := self._certificates.get(name)) is not None)

    @property
    def callers(self) -> Callers:
        """The tenants and roles of all principals."""
        identities = (*self._tokens.values(), *self._certificates.values())
        pairs = ((identity.tenant, frozenset(map(str, identity.roles))) for identity in identities)
        return Callers(frozenset(pairs))

    @property
    def names_certificates(self) -> bool:
        """Whether some principal has a certificate."""
        return bool(self._certificates)


def callers_of(path: Path | None) -> Callable[[], Callers]:
    """A function that returns who may call, by a file of identities; without a file, ANONYMOUS.

    It reads the file at each call, since principals come and go. If the file cannot be read, it returns what
    the file said last.
    """
    anybody = Callers(frozenset(((ANONYMOUS.tenant, frozenset(map(str, ANONYMOUS.roles))),)))
    last: list[Callers] = []

    def now() -> Callers:
        if path is None:
            return anybody
        try:
            last[:] = [read_identities(path).callers]
        except IdentitiesError:
            if not last:
                raise
        return last[0]

    return now


def read_identities(path: Path) -> Identities:
    """Read a file of identities. Raises IdentitiesError with each problem and its line."""
    try:
        document = read_yaml(path.read_bytes(), str(path))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise IdentitiesError([Problem(f"cannot be read: {reason}", file=str(path))]) from error
    except PolicyError as error:
        raise IdentitiesError(error.problems) from error
    try:
        content = _File.model_validate(document.value)
    except ValidationError as error:
        raise IdentitiesError(
            _problem(details, document, str(path)) for details in error.errors(include_input=False)
        ) from None
    return _indexed(content.principals, document, str(path))


def _indexed(principals: tuple[Principal, ...], document: Document, file: str) -> Identities:
    tokens: dict[str, Identity] = {}
    certificates: dict[str, Identity] = {}
    names: dict[str, int] = {}
    problems: list[Problem] = []

    def complain(place: Place, message: str) -> None:
        problems.append(Problem(message, path_of(place), file, document.line(place)))

    for number, principal in enumerate(principals):
        place, name = ("principals", number), principal.name
        if name in RESERVED:
            complain((*place, "name"), f"{name!r} is what records call no principal; choose another")
        if (first := names.setdefault(name, number)) != number:
            complain((*place, "name"), f"{name!r} is principals[{first}] already; one has all credentials")
        if not principal.token_sha256 and not principal.certificate:
            complain(place, f"{name!r} has no credential; give token_sha256 or certificate")
        for key, credentials, owners in (
            ("token_sha256", principal.token_sha256, tokens),
            ("certificate", principal.certificate, certificates),
        ):
            for credential in credentials:
                if credential in owners:
                    complain((*place, key), f"{owners[credential].name!r} has the same credential")
                owners[credential] = Identity(name, principal.tenant, principal.roles)
    if problems:
        raise IdentitiesError(problems)
    return Identities(tokens, certificates)


def _problem(error: ErrorDetails, document: Document, file: str) -> Problem:
    """One of pydantic's errors with its place. It does not show the value, which may be a token."""
    place: Place = error["loc"]
    keys = [part for part in place if isinstance(part, str)]
    message = error["msg"]
    if error["type"] == "missing":
        message = "is missing"
    elif error["type"] == "extra_forbidden":
        message = f"is no key here; the keys are {', '.join(_keys(place))}"
    elif error["type"] in ("model_type", "model_attributes_type"):
        message = f"must be a map of {', '.join(_keys(place))}"
    elif keys and keys[-1] in _WANTED:
        message = _WANTED[keys[-1]]
    return Problem(message, path_of(place), file, document.line(place))


def _keys(place: Place) -> Iterable[str]:
    return (Principal if len(place) > 1 else _File).model_fields


class IdentitiesFile:
    """A file of identities. A changed file is read again, so that a token is revoked without a restart."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Read the file. Raises IdentitiesError."""
        self._path = path
        self._metrics = metrics
        self._seen = self._stamp()
        self._good = read_identities(path)
        metrics.identities_stale.set(0.0)

    def current(self) -> Identities:
        """The identities in force. If the file cannot be read, the last good ones stay in force."""
        if (stamp := self._stamp()) != self._seen:
            # The stamp is older than the content: a write in between is read at the next call.
            self._seen = stamp
            try:
                self._good = read_identities(self._path)
            except IdentitiesError as error:
                self._metrics.identities_stale.set(1.0)
                log.error("identities could not be renewed, the last good ones stay in force: %s", error)
            else:
                self._metrics.identities_stale.set(0.0)
                log.info("identities renewed from %s", self._path)
        return self._good

    def _stamp(self) -> tuple[Any, ...] | None:
        """A value that changes with the file; None if there is no file."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
