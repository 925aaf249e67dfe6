"""Premises: what a server needs beside its model, opened and checked, and its governor."""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from saegis_server.audit.chain import read_key
from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import PolicyRecord
from saegis_server.directions.folder import check_upload_folder, shipped_files
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.bundle.signing import load_public_key
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import PolicyError
from saegis_server.policy.store.history import DiskHistory
from saegis_server.policy.store.store import PolicyStore
from saegis_server.problem import Problem
from saegis_server.rpc.auth.attribution import rules_of
from saegis_server.rpc.auth.governor import Governor
from saegis_server.rpc.auth.identities import read_identities
from saegis_server.rpc.server.config import PolicySettings, ServerConfig, TLSFiles
from saegis_server.rpc.server.limits import Limiter
from saegis_server.sae.files import check_sae
from saegis_server.steering.site import Site
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.tenants import TenantClasses
from saegis_server.telemetry.traces import Traces


@dataclass(frozen=True, slots=True)
class Premises:
    """What the listener and the services share; the audit log is open."""

    metrics: Metrics
    limiter: Limiter
    audit: AuditLog | None
    traces: Traces

    def close(self) -> None:
        """Close the audit log, and send the spans that are left. May be called twice."""
        self.traces.close()
        if self.audit is not None:
            self.audit.close()


def prepare(config: ServerConfig) -> Premises:
    """Check everything of a configuration that needs no model, and open the audit log.

    Raises what `check_files` raises; HistoryError for a state that cannot be used; AuditBrokenError,
    AuditKeyError and AuditUnavailableError for a log that cannot be written; ValueError for traces without
    what they need.
    """
    known = _known_sources(config.policies)
    check_files(config, known)
    traces = Traces.to(config.traces) if config.traces else Traces()
    metrics = Metrics(TenantClasses(config.tenant_classes))
    audit = None if config.audit is None else AuditLog(config.audit, metrics)
    return Premises(metrics, Limiter(config.limits), audit, traces)


def _known_sources(settings: PolicySettings | None) -> frozenset[str]:
    """The paths whose bundles the state of the policies has, so that the files may have gone bad."""
    if settings is None or settings.state is None:
        return frozenset()
    history = DiskHistory(settings.state)
    try:
        return frozenset(standing.source for standing in history.standings().values())
    finally:
        history.close()


def check_files(config: ServerConfig, known: frozenset[str] = frozenset()) -> None:
    """Check the files that a configuration names and that need no model, without writing anything.

    known: paths of bundles that need not be readable, since the state has them.

    Raises SiteError, SAEFileError and DirectionFileError for sites, SAEs and directions that do not exist;
    IdentitiesError, PolicyError and KeyFileError for files that cannot be used; ValueError and OSError for
    TLS files; AuditKeyError for the key of the audit log.
    """
    for site in (*config.sites, *(source.site for source in config.saes if source.site is not None)):
        Site.parse(site)
    for source in config.saes:
        check_sae(source.path)
    for path in shipped_files(config.directions):
        path.open("rb").close()
    if config.direction_state is not None:
        check_upload_folder(config.direction_state)
    if config.tls is not None:
        _check_tls(config.tls)
    if config.identities is not None:
        read_identities(config.identities)
    if config.policies is not None:
        _check_policies(config.policies, known)
    if config.audit is not None:
        read_key(config.audit.key_file)


def _check_policies(settings: PolicySettings, known: frozenset[str]) -> None:
    """Read keys and bundles."""
    for path in settings.keys:
        load_public_key(path)
    for path in settings.bundles:
        try:
            Bundle.read(path)
        except PolicyError as error:
            if str(path.resolve()) not in known:
                raise PolicyError([_placed(problem, path) for problem in error.problems]) from error


def _placed(problem: Problem, bundle: Path) -> Problem:
    """A problem with its bundle's path, since there may be several bundles."""
    if problem.file.startswith(str(bundle)):
        return problem
    return replace(problem, file=str(bundle / problem.file))


def _check_tls(tls: TLSFiles) -> None:
    """Raise ValueError unless the files are a certificate and its key, and OSError if they cannot be read."""
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


def govern(config: ServerConfig, premises: Premises, world: World) -> Governor:
    """The governor of a configuration, with its policies in force.

    Raises PolicyError, KeyFileError and HistoryError for policies that cannot come in force.
    """
    metrics, audit = premises.metrics, premises.audit
    if audit is not None:
        metrics.observe_audit(lambda: audit.waiting, lambda: audit.head.seq, lambda: audit.is_failing)
    policies = _policies(config, world, metrics, audit)
    governor = Governor(world.model, world.capacity, metrics, policies, audit)
    if policies is not None:

        def changed(before: PolicySet, now: PolicySet, urgent: bool) -> None:
            metrics.rules.show(rules_of(now))
            if urgent:
                governor.end_all()

        metrics.rules.show(rules_of(policies.active))
        policies.on_change(changed)
    return governor


def _policies(
    config: ServerConfig, world: World, metrics: Metrics, audit: AuditLog | None
) -> PolicyStore | None:
    settings = config.policies
    if settings is None:
        return None

    def record(change: PolicyRecord) -> None:
        if audit is not None:
            audit.require_blocking(change)

    keys = [load_public_key(path) for path in settings.keys]
    store = PolicyStore(world, metrics, settings.state, keys, record, settings.unmatched)
    try:
        store.load_start(settings.bundles)
    except BaseException:
        store.close()
        raise
    return store


log = logging.getLogger("saegis.rpc")


def warn_of_modes(config: ServerConfig) -> None:
    """Warn about secrets that others can read, and about trusted files that others can change."""
    for problem in open_files(config):
        log.warning("%s", problem)


def open_files(config: ServerConfig) -> Iterator[str]:
    """What is wrong with the modes of a configuration's files, and how to fix it."""
    tls, audit, policies = config.tls, config.audit, config.policies
    secrets = [
        ("the TLS key", tls.key if tls else None),
        ("the key of the audit log", audit.key_file if audit else None),
    ]
    trusted: list[tuple[str, Path | None]] = [
        ("the file of identities", config.identities),
        ("the TLS certificate", tls.cert if tls else None),
        ("the client CA", tls.client_ca if tls else None),
        ("the audit log", audit.directory if audit else None),
        ("the state of policies", policies.state if policies else None),
        ("the folder of usage", config.usage_state),
        ("the folder of uploaded directions", config.direction_state),
        *(("a direction", path) for path in config.directions),
        *(("a policy key", key) for key in (policies.keys if policies else ())),
        *(("a policy", bundle) for bundle in (policies.bundles if policies else ())),
    ]
    for what, path in secrets:
        if (mode := _mode(path)) & (stat.S_IRWXG | stat.S_IRWXO):
            yield f"{what} {path} can be read or changed by others (mode {mode:04o}): chmod 600 {path}"
    for what, path in trusted:
        if (mode := _mode(path)) & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"{what} {path} can be changed by others (mode {mode:04o}): chmod go-w {path}"


def _mode(path: Path | None) -> int:
    """The mode of a path; 0 if there is no file, an error that is reported elsewhere."""
    try:
        return 0 if path is None else stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0
