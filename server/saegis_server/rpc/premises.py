"""Premises: what a server needs beside its model, taken and checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from saegis_server.engine.loading import check_device, check_dtype
from saegis_server.engine.sites import Site
from saegis_server.policy.audit_log import AuditLog
from saegis_server.policy.bundle import Bundle
from saegis_server.policy.errors import PolicyError
from saegis_server.policy.history import DiskHistory
from saegis_server.policy.signing import load_public_key
from saegis_server.rpc.config import ServerConfig
from saegis_server.rpc.identities import read_identities
from saegis_server.rpc.limits import Limiter
from saegis_server.rpc.policy_config import PolicySettings
from saegis_server.sae.hub import check_spec
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

    Raises ModelLoadError for a device or dtype that this machine does not have, SiteError and SAEFileError
    for sites and SAEs that cannot be, IdentitiesError, PolicyError, KeyFileError and HistoryError for files
    of no use, AuditBrokenError, AuditKeyError and AuditUnavailableError for a log that cannot be written.
    """
    check_dtype(config.dtype)
    check_device(config.device)
    for site in (*config.sites, *(source.site for source in config.saes if source.site is not None)):
        Site.parse(site)
    for source in config.saes:
        check_spec(source.path)
    if config.identities is not None:
        read_identities(config.identities)
    if config.policies is not None:
        _check_policies(config.policies)
    metrics = Metrics()
    audit = None if config.audit is None else AuditLog(config.audit, metrics)
    return Premises(metrics, Limiter(config.limits), audit)


def _check_policies(settings: PolicySettings) -> None:
    """Read keys, state and bundles. A bundle may be broken where the state has one of its place."""
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
        except PolicyError:
            if str(path.resolve()) not in known:
                raise
