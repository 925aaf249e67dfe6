"""Conflicts between policies: found when the later one is to come in force, which leaves the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.conflicts import conflicts, may_meet
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import RequestFacts
from saegis_server.policy.errors import ConflictError, PolicyError
from saegis_server.policy.schema.policy import EVERY, Match
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics
from tests.policy import made
from tests.policy.bundles import write_files
from tests.policy.policies import WORLD, bundle
from tests.policy.stores import states

NAMES = (EVERY, "a", "b")
named = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
matches = st.builds(Match, tenants=named, roles=named, models=named)


def clamping(name: str, value: float, serial: int = 1, extra: str = "") -> Bundle:
    """A bundle that clamps a feature that others of these clamp too."""
    rule = f"{{id: hold, clamp: {{features: [{{sae: first, index: 7}}], value: {value}}}}}"
    return bundle(f"{extra}\nrules: [{rule}]\n", name=name, serial=serial)


def matching(name: str, match: Match, value: float) -> Bundle:
    parts = {"tenants": match.tenants, "roles": match.roles, "models": match.models}
    words = ", ".join(f"{key}: {_list(names)}" for key, names in parts.items())
    return clamping(name, value, extra=f"match: {{{words}}}")


def _list(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{each}"' for each in names) + "]"


def a_store(directory: Path | None = None, metrics: Metrics | None = None) -> PolicyStore:
    return PolicyStore(made.world(), metrics or Metrics(), directory)


def failed(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("saegis_policy_reload_failures_total", {"kind": "conflict"})


def test_what_contradicts_a_policy_in_force_is_not_taken() -> None:
    metrics = Metrics()
    store = a_store(metrics=metrics)
    store.put(clamping("one", 1.0).archive(), "", "alice")
    assert failed(metrics) == 0.0
    before = store.active
    with pytest.raises(ConflictError, match=r"rules.hold: .*clamp to 1 and clamp to 2; one@r1 is in force"):
        store.put(clamping("two", 2.0).archive(), "", "bob")
    assert store.active is before
    assert failed(metrics) == 1.0
    assert [each.path for each in store.examine(clamping("two", 2.0)).problems] == ["rules.hold"]
    # What agrees with it, concerns others, or never acts, is.
    store.put(clamping("same", 1.0).archive(), "", "bob")
    store.put(clamping("audited", 2.0, extra="mode: audit").archive(), "", "bob")
    assert store.active.decide(RequestFacts("default", frozenset({"use"}), "tiny")).allowed


def test_a_policy_may_contradict_what_it_replaces_and_what_it_is_tried_beside() -> None:
    store = a_store()
    first = store.put(clamping("one", 1.0).archive(), "", "alice")
    beside = store.put(clamping("one", 2.0, serial=2).archive(), first.etag, "alice", shadow=True)
    assert store.put(clamping("one", 3.0, serial=3).archive(), beside.etag, "alice").active.serial == 3


def test_a_roll_back_into_a_contradiction_is_refused() -> None:
    store = a_store()
    first = store.put(clamping("one", 1.0).archive(), "", "alice")
    second = store.put(clamping("one", 2.0, serial=2).archive(), first.etag, "alice")
    store.put(clamping("two", 2.0).archive(), "", "bob")
    with pytest.raises(ConflictError, match="two@r1 is in force"):
        store.roll_back("one", first.active.digest, second.etag, "alice")


def test_at_the_start_a_contradiction_leaves_the_last_good_one_in_force_or_ends_it(tmp_path: Path) -> None:
    def configured(bundle: Bundle) -> Path:
        return write_files(tmp_path / bundle.policy.name, dict(bundle.files))

    one, two = configured(clamping("one", 1.0)), configured(clamping("two", 1.0))
    store = a_store(tmp_path / "state")
    store.load_start([one, two])
    good = states(store)
    store.close()
    configured(clamping("two", 2.0, serial=2))
    metrics = Metrics()
    store = a_store(tmp_path / "state", metrics)
    store.load_start([one, two])
    assert states(store) == good
    assert failed(metrics) == 1.0
    store.close()
    with pytest.raises(ConflictError) as raised:
        a_store(tmp_path / "fresh").load_start([one, two])
    assert isinstance(raised.value, PolicyError)


@given(matches, matches)
def test_those_that_meet_are_those_that_some_request_of_one_role_meets(one: Match, other: Match) -> None:
    first, second = (
        compile_policy(matching(name, match, value), WORLD)
        for name, match, value in (("one", one, 1.0), ("two", other, 2.0))
    )
    both = PolicySet([first, second])
    answers = [
        both.decide(RequestFacts(tenant, frozenset({role}), model))
        for tenant in ("a", "b", "c")
        for role in ("a", "b", "c")
        for model in ("a", "b", "c")
    ]
    clash = any("contradict" in denial.message for answer in answers for denial in answer.denials)
    assert clash == may_meet(one, other)
    assert clash == bool(list(conflicts(matching("two", other, 2.0), second, [first])))
