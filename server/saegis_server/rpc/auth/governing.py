"""Governing: the audit log and the policies that a configuration names, opened and put together."""

from saegis_server.audit.log import AuditLog
from saegis_server.audit.records import PolicyRecord
from saegis_server.policy.bundle.signing import load_public_key
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.world import World
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.governor import Governor
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.premises import Premises
from saegis_server.telemetry.metrics import Metrics


def govern(config: ServerConfig, premises: Premises, world: World) -> Governor:
    """The governor of a configuration, its policies in force.

    Raises PolicyError, KeyFileError and HistoryError for policies that cannot come in force.
    """
    metrics, audit = premises.metrics, premises.audit
    if audit is not None:
        metrics.observe_audit(lambda: audit.waiting, lambda: audit.head.seq, lambda: audit.is_failing)
    policies = _policies(config, world, metrics, audit)
    governor = Governor(world.model, world.capacity, metrics, policies, audit)
    if policies is not None:

        def changed(before: PolicySet, now: PolicySet, urgent: bool) -> None:
            if urgent:
                governor.end_all()

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
