"""Identities: the principals that a server knows, by the credentials in a YAML file."""

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

#: Names that records give to what is no principal.
RESERVED = frozenset((ANONYMOUS.name, "start"))
#: What a value must be, by key: pydantic's own words would be a regular expression.
_WANTED = {
    "name": "must be 1 to 128 letters, digits and . _ @ : / + -",
    "tenant": "must be 1 to 128 letters, digits and . _ @ : / + -",
    "token_sha256": "must be 64 hexadecimal digits, the SHA-256 of a token as 'saegis token new' tells it",
    "certificate": "must be a name of a certificate, in characters that can be printed, or a list of them",
}


class IdentitiesError(ValueError):
    """A file of identities that cannot be taken; `problems` are all that were found, at least one."""

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
        """Whose a token is, whatever text it is; None for nobody's.

        Tokens have 256 random bits and are looked up by their digest, so time tells nothing about them.
        """
        found = self._tokens.get(token_digest(token))
        return found if token else None

    def of_certificate(self, names: Iterable[str]) -> frozenset[Identity]:
        """Whom the names of a verified certificate name: more than one where it is ambiguous."""
        return frozenset(found for name in names if (found := self._certificates.get(name)) is not None)

    @property
    def callers(self) -> Callers:
        """The tenants and roles of all principals."""
        known = (*self._tokens.values(), *self._certificates.values())
        return Callers(frozenset((each.tenant, frozenset(map(str, each.roles))) for each in known))

    @property
    def names_certificates(self) -> bool:
        """Whether some principal has a certificate."""
        return bool(self._certificates)


def callers_of(path: Path | None) -> Callable[[], Callers]:
    """What tells who may call by a file of identities; without one, anybody as ANONYMOUS.

    The file is read at each call, since principals come and go. Where it cannot be read, whom it last named.
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
    """Read a file of identities. Raises IdentitiesError with the line of everything that is wrong."""
    try:
        document = read_yaml(path.read_bytes(), str(path))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise IdentitiesError([Problem(f"cannot be read: {reason}", file=str(path))]) from error
    except PolicyError as error:
        raise IdentitiesError(error.problems) from error
    try:
        found = _File.model_validate(document.value)
    except ValidationError as error:
        raise IdentitiesError(
            _problem(each, document, str(path)) for each in error.errors(include_input=False)
        ) from None
    return _indexed(found.principals, document, str(path))


def _indexed(principals: tuple[Principal, ...], document: Document, file: str) -> Identities:
    tokens: dict[str, Identity] = {}
    certificates: dict[str, Identity] = {}
    names: dict[str, int] = {}
    problems: list[Problem] = []

    def complain(place: Place, message: str) -> None:
        problems.append(Problem(message, path_of(place), file, document.line(place)))

    for number, each in enumerate(principals):
        place = ("principals", number)
        if each.name in RESERVED:
            complain((*place, "name"), f"{each.name!r} is what records call no principal; choose another")
        if (first := names.setdefault(each.name, number)) != number:
            complain(
                (*place, "name"), f"{each.name!r} is principals[{first}] already; one has all credentials"
            )
        if not each.token_sha256 and not each.certificate:
            complain(place, f"{each.name!r} has no credential; give token_sha256 or certificate")
        for key, given, known in (
            ("token_sha256", each.token_sha256, tokens),
            ("certificate", each.certificate, certificates),
        ):
            for credential in given:
                if credential in known:
                    complain((*place, key), f"{known[credential].name!r} has the same credential")
                known[credential] = Identity(each.name, each.tenant, each.roles)
    if problems:
        raise IdentitiesError(problems)
    return Identities(tokens, certificates)


def _problem(error: ErrorDetails, document: Document, file: str) -> Problem:
    """One of pydantic's errors with its place. What was given is not told: it may be a token."""
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
    """A file of identities, read again when it has changed, so that a token is revoked without a restart."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Read the file. Raises IdentitiesError."""
        self._path = path
        self._metrics = metrics
        self._seen = self._stamp()
        self._good = read_identities(path)
        metrics.identities_stale.set(0.0)

    def current(self) -> Identities:
        """The identities that are in force now. A file that cannot be read leaves the last good ones."""
        if (stamp := self._stamp()) != self._seen:
            # Taken before the file is read: what is written meanwhile is read at the next call.
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
        """Changes with the file; None where there is none."""
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
