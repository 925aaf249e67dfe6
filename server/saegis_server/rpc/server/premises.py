"""Premises: what a server needs beside its model, taken and checked before the model is loaded."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from saegis_server.audit.log import AuditLog
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import load_public_key
from saegis_server.policy.errors import PolicyError
from saegis_server.policy.store.history import DiskHistory
from saegis_server.problem import Problem
from saegis_server.rpc.auth.identities import read_identities
from saegis_server.rpc.server.config import ServerConfig, TLSFiles
from saegis_server.rpc.server.limits import Limiter
from saegis_server.rpc.server.policy_config import PolicySettings
from saegis_server.sae.files import check_sae
from saegis_server.steering.site import Site
from saegis_server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Premises:
    """What the listener and the services share; the audit log is open."""

    metrics: Metrics
    limiter: Limiter
    audit: AuditLog | None

    def close(self) -> None:
        """Let go of the audit log. Twice is once."""
        if self.audit is not None:
            self.audit.close()


def prepare(config: ServerConfig) -> Premises:
    """Check all of a configuration that can be checked without its model, and open the audit log.

    Raises SiteError and SAEFileError for sites and SAEs that do not exist; IdentitiesError, PolicyError,
    KeyFileError and HistoryError for files that cannot be used; ValueError and OSError for those of TLS;
    AuditBrokenError, AuditKeyError and AuditUnavailableError for a log that cannot be written.
    """
    for site in (*config.sites, *(source.site for source in config.saes if source.site is not None)):
        Site.parse(site)
    for source in config.saes:
        check_sae(source.path)
    if config.tls is not None:
        _check_tls(config.tls)
    if config.identities is not None:
        read_identities(config.identities)
    if config.policies is not None:
        _check_policies(config.policies)
    metrics = Metrics()
    audit = None if config.audit is None else AuditLog(config.audit, metrics)
    return Premises(metrics, Limiter(config.limits), audit)


def _check_policies(settings: PolicySettings) -> None:
    """Read keys, state and bundles. A bundle may be broken if the state has one from its path."""
    for path in settings.keys:
        load_public_key(path)
    known: set[str] = set()
    if settings.state is not None:
        history = DiskHistory(settings.state)
        try:
            known = {each.source for each in history.standings().values()}
        finally:
            history.close()
    for path in settings.bundles:
        try:
            Bundle.read(path)
        except PolicyError as error:
            if str(path.resolve()) not in known:
                raise PolicyError([_placed(each, path) for each in error.problems]) from error


def _placed(problem: Problem, bundle: Path) -> Problem:
    """A problem, with the path of the bundle that it was found in, since several may be given."""
    if problem.file.startswith(str(bundle)):
        return problem
    return replace(problem, file=str(bundle / problem.file))


def _check_tls(tls: TLSFiles) -> None:
    """Raise ValueError for files that are no certificate and its key, and OSError."""
    for path in (tls.cert, tls.key, *([tls.client_ca] if tls.client_ca else [])):
        path.read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except ssl.SSLError as error:
        raise ValueError(
            f"{tls.cert} and {tls.key} are no PEM certificate and its private key without a password: "
            f"{error.reason or error}"
        ) from error
    try:
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError as error:
        raise ValueError(f"{tls.client_ca} holds no PEM certificates: {error.reason or error}") from error
