"""Stores for tests: opened on a directory with the configured bundles, as a server does at its start."""

from __future__ import annotations

from pathlib import Path

from saegis_server.policy.decide.disclosure import OPERATOR
from saegis_server.policy.store.in_force import PolicyState
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics
from tests.policy import made

Opened = tuple[PolicyStore, Metrics]


def opened(directory: Path, *bundles: Path, keys: tuple[int, ...] = (), whole: bool = True) -> Opened:
    """A store and its metrics; the caller closes it."""
    metrics = Metrics()
    store = PolicyStore(made.world(whole), metrics, directory, made.public(*keys))
    try:
        store.load_start(bundles)
    except BaseException:
        store.close()
        raise
    return store, metrics


def closed(directory: Path, *bundles: Path, keys: tuple[int, ...] = ()) -> tuple[PolicyState, ...]:
    """What is in force after a start, which is ended again."""
    store, _ = opened(directory, *bundles, keys=keys)
    store.close()
    return states(store)


def states(store: PolicyStore) -> tuple[PolicyState, ...]:
    """Each policy in force, by name."""
    return tuple(each.state for each in store.all_for(OPERATOR))
