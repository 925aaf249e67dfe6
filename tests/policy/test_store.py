"""The store: what comes in force, what does not, and who sees what when."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from saegis_server.audit.records import PolicyRecord
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import RequestFacts
from saegis_server.policy.errors import (
    CompileError,
    HistoryError,
    PolicyError,
    SerialError,
    SignatureError,
    StaleEtagError,
    UnknownPolicyError,
    UnknownRevisionError,
)
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics
from tests.policy import made
from tests.policy.stores import states

ASKED = RequestFacts("default", frozenset({"use"}), "tiny")


def a_store(directory: Path | None = None, *keys: int, metrics: Metrics | None = None) -> PolicyStore:
    return PolicyStore(made.world(), metrics or Metrics(), directory, made.public(*keys))


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def rules(deciding: PolicySet) -> list[str]:
    return [rule.rule for rule in deciding.decide(ASKED).rules]


def test_without_a_policy_everything_is_denied() -> None:
    assert not a_store().active.decide(ASKED).allowed


def test_a_put_comes_in_force_and_who_held_the_old_keeps_it() -> None:
    store = a_store()
    first = store.put(made.archive(1), "", "alice")
    before = store.active
    second = store.put(made.archive(2), first.etag, "bob")
    assert (rules(before), rules(store.active)) == (["ban-1"], ["ban-2"])
    assert (before.revision, store.active.revision) == ("harm@r1", "harm@r2")
    assert second.etag != first.etag
    assert (second.active.serial, second.active.put_by, second.description) == (2, "bob", "Serial 2.")
    assert second.rules == ("ban-2",)
    assert second.active.put_time >= first.active.put_time
    state, revisions = store.history("harm")
    assert state == second
    assert [(each.serial, each.put_by) for each in revisions] == [(2, "bob"), (1, "alice")]
    assert store.get("harm")[1] == made.bundle(2)


def test_the_same_bundle_again_changes_nothing() -> None:
    store = a_store()
    state = store.put(made.archive(1), "", "alice")
    deciding = store.active
    assert store.put(made.archive(1), "anything", "bob") == state
    assert store.active is deciding


def test_an_etag_must_be_that_of_what_is_in_force() -> None:
    store = a_store()
    with pytest.raises(StaleEtagError, match="its etag is empty"):
        store.put(made.archive(1), "some", "alice")
    state = store.put(made.archive(1), "", "alice")
    for stale in ("", "other"):
        with pytest.raises(StaleEtagError, match=state.etag):
            store.put(made.archive(2), stale, "alice")
        with pytest.raises(StaleEtagError):
            store.roll_back("harm", state.active.digest, stale, "alice")
    assert store.active.revision == "harm@r1"


@pytest.mark.parametrize(("kind", "broken", "told"), made.BROKEN)
def test_a_broken_bundle_never_replaces_a_good_one(
    kind: str, broken: Callable[[int], bytes], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics, records = Metrics(), list[PolicyRecord]()
    store = PolicyStore(made.world(), metrics, record=records.append)
    state = store.put(made.archive(1), "", "alice")
    deciding = store.active
    with caplog.at_level(logging.ERROR, "saegis.policy"), pytest.raises(PolicyError) as raised:
        store.put(broken(2), state.etag, "mallory")
    assert raised.value.kind == kind
    assert told in str(raised.value)
    assert store.active is deciding
    assert store.get("harm")[0] == state
    assert f"kind={kind} by=mallory" in caplog.text
    for problem in raised.value.problems:
        assert str(problem) in caplog.text
    assert sample(metrics, "saegis_policy_reload_failures_total", kind=kind) == 1.0
    assert sample(metrics, "saegis_policy_last_reload_successful") == 0.0
    assert sample(metrics, "saegis_policy_info", policy="harm", revision="r1") == 1.0
    assert [(each.action, each.by) for each in records] == [("put", "alice"), ("rejected", "mallory")]
    assert records[1].problems == tuple(map(str, raised.value.problems))
    store.put(made.archive(2), state.etag, "alice")
    assert sample(metrics, "saegis_policy_last_reload_successful") == 1.0
    assert sample(metrics, "saegis_policy_info", policy="harm", revision="r1") is None
    assert sample(metrics, "saegis_policy_info", policy="harm", revision="r2") == 1.0


def test_only_trusted_keys_sign() -> None:
    store = a_store(None, 1, 2)
    for refused, why in ((made.archive(1), "not signed"), (made.archive(1, signed=3), "not trusted")):
        with pytest.raises(SignatureError, match=why):
            store.put(refused, "", "alice")
    state = store.put(made.archive(1, signed=1), "", "alice")
    # Signed anew with another key, the same content is a change: an old key can be retired.
    again = store.put(made.archive(1, signed=2), state.etag, "alice")
    assert again.active.signed_by != state.active.signed_by
    assert again.active.digest == state.active.digest
    assert store.put(made.archive(1, signed=2), "", "alice") == again


def test_a_signature_of_other_content_does_not_hold() -> None:
    from dataclasses import replace

    store = a_store(None, 1)
    other = replace(made.bundle(2), signature=made.bundle(1, signed=1).signature)
    with pytest.raises(SignatureError, match="changed"):
        store.put(other.archive(), "", "alice")


def test_without_keys_nobody_is_said_to_have_signed() -> None:
    assert a_store().put(made.archive(1, signed=3), "", "alice").active.signed_by == ""


def test_serials_rise() -> None:
    store = a_store()
    state = store.put(made.archive(5), "", "alice")
    with pytest.raises(SerialError, match="4 is a step back from 5; give at least 6"):
        store.put(made.archive(4), state.etag, "alice")
    with pytest.raises(SerialError, match="other content"):
        store.put(made.archive(5, extra="urgent: true"), state.etag, "alice")


def test_a_roll_back_lowers_the_serial_but_not_what_a_put_needs() -> None:
    store = a_store()
    one = store.put(made.archive(1), "", "alice")
    two = store.put(made.archive(2), one.etag, "alice")
    back = store.roll_back("harm", one.active.digest[:8], two.etag, "bob")
    assert (back.active.serial, back.active.put_by, store.active.revision) == (1, "bob", "harm@r1")
    assert back.etag not in (one.etag, two.etag)
    with pytest.raises(SerialError, match="roll back to"):
        store.put(made.archive(2), back.etag, "alice")
    forth = store.roll_back("harm", two.active.digest, back.etag, "bob")
    assert store.active.revision == "harm@r2"
    assert store.put(made.archive(3), forth.etag, "alice").active.serial == 3
    assert [each.serial for each in store.history("harm")[1]] == [3, 2, 1]


def test_a_roll_back_names_a_revision() -> None:
    store = a_store()
    state = store.put(made.archive(1), "", "alice")
    with pytest.raises(UnknownPolicyError, match=r"no policy 'other'.* harm"):
        store.roll_back("other", "0" * 64, state.etag, "alice")
    with pytest.raises(UnknownRevisionError, match=r"no revision .*r1"):
        store.roll_back("harm", "0" * 64, state.etag, "alice")
    with pytest.raises(UnknownRevisionError, match="at least 8 digits"):
        store.roll_back("harm", state.active.digest[:7], state.etag, "alice")


def test_candidates_are_beside_and_never_act() -> None:
    store = a_store()
    with pytest.raises(UnknownPolicyError):
        store.put(made.archive(1), "", "alice", shadow=True)
    state = store.put(made.archive(1), "", "alice")
    with pytest.raises(SerialError, match="nothing to evaluate beside"):
        store.put(made.archive(1), state.etag, "alice", shadow=True)
    plain = store.active.decide(ASKED).program.digest
    beside = store.put(made.archive(2), state.etag, "alice", shadow=True)
    assert beside.shadow is not None
    assert (beside.active.serial, beside.shadow.serial) == (1, 2)
    assert store.active.decide(ASKED).program.digest == plain
    assert rules(store.active) == ["ban-1", "ban-2"]
    promoted = store.put(made.archive(2), beside.etag, "alice")
    assert (promoted.active.serial, promoted.shadow) == (2, None)
    assert store.active.decide(ASKED).program.digest != plain


def test_a_roll_back_drops_the_candidate() -> None:
    store = a_store()
    state = store.put(made.archive(1), "", "alice")
    beside = store.put(made.archive(2), state.etag, "alice", shadow=True)
    back = store.roll_back("harm", state.active.digest, beside.etag, "alice")
    assert (back.active.serial, back.shadow) == (1, None)
    assert rules(store.active) == ["ban-1"]


def test_a_candidate_newer_than_a_put_stays() -> None:
    store = a_store()
    state = store.put(made.archive(1), "", "alice")
    beside = store.put(made.archive(3), state.etag, "alice", shadow=True)
    # 2 is below the candidate's serial, which was taken too.
    with pytest.raises(SerialError):
        store.put(made.archive(2), beside.etag, "alice")
    state = store.roll_back("harm", state.active.digest, beside.etag, "alice")
    assert store.put(made.archive(4), state.etag, "alice").shadow is None


def test_several_policies_are_in_force_together() -> None:
    store = a_store()
    store.put(made.archive(1), "", "alice")
    store.put(made.archive(1, name="other", target="{sae: first, index: 5}"), "", "alice")
    deciding = store.active
    assert [state.active.name for state in states(store)] == ["harm", "other"]
    assert deciding.revision == "harm@r1,other@r1"
    program = deciding.decide(ASKED).program
    assert sum(len(site.bans) for site in program.sites.values()) == 2


def test_listeners_are_told_once_it_is_in_force() -> None:
    store, told = a_store(), list[tuple[str, str, bool, bool]]()

    def listen(old: PolicySet, new: PolicySet, urgent: bool) -> None:
        told.append((old.revision, new.revision, urgent, store.active is new))

    store.on_change(listen)
    one = store.put(made.archive(1), "", "alice")
    two = store.put(made.archive(2, extra="urgent: true"), one.etag, "alice")
    beside = store.put(made.archive(3, extra="urgent: true"), two.etag, "alice", shadow=True)
    back = store.roll_back("harm", one.active.digest, beside.etag, "alice")
    store.roll_back("harm", two.active.digest, back.etag, "alice")
    assert told == [
        ("", "harm@r1", False, True),
        ("harm@r1", "harm@r2", True, True),
        ("harm@r2", "harm@r2", False, True),
        ("harm@r2", "harm@r1", False, True),
        ("harm@r1", "harm@r2", True, True),
    ]


def test_what_cannot_be_recorded_does_not_come_in_force() -> None:
    class FullError(Exception):
        pass

    def record(told: PolicyRecord) -> None:
        if told.serial == 2:
            raise FullError

    store = PolicyStore(made.world(), Metrics(), record=record)
    state = store.put(made.archive(1), "", "alice")
    with pytest.raises(FullError):
        store.put(made.archive(2), state.etag, "alice")
    assert store.active.revision == "harm@r1"
    # A rejection that cannot be recorded still says what is wrong with the bundle.
    with pytest.raises(CompileError, match="4800"):
        store.put(made.archive(2, target="{sae: first, index: 4800}"), state.etag, "alice")


def test_examine_finds_everything_at_once() -> None:
    store = a_store(None, 1)
    store.put(made.archive(3, signed=1), "", "alice")
    found = store.examine(made.bundle(2, expect="deny"))
    text = "\n".join(map(str, found.problems))
    assert "not signed" in text
    assert "step back" in text
    assert "tests/cases.yaml:4: case 'no edits'" in text
    assert [case.passed for case in found.cases] == [False]
    good = store.examine(made.bundle(4, signed=1))
    assert (good.problems, [case.passed for case in good.cases]) == ((), [True])
    assert good.signed_by == store.get("harm")[0].active.signed_by
    assert store.active.revision == "harm@r3"
    with pytest.raises(SignatureError):
        store.check(made.bundle(2, expect="deny"))
    assert store.check(made.bundle(4, signed=1)).compiled.revision_name == "harm@r4"


def test_concurrent_puts_are_one_after_another_and_reads_see_whole_sets() -> None:
    """Two policies are put by two threads each; every read sees sets that were in force, in their order."""
    store = a_store()
    for name in ("a", "b"):
        store.put(made.archive(1, name=name), "", "start")
    archives = {name: [made.archive(n, name=name) for n in range(2, 12)] for name in ("a", "b")}
    in_force, seen = [store.active], list[PolicySet]()
    store.on_change(lambda old, new, urgent: in_force.append(new))
    done = threading.Event()

    def put(name: str) -> None:
        for archive in archives[name]:
            while True:
                try:
                    store.put(archive, store.get(name)[0].etag, "put")
                    break
                except StaleEtagError:
                    continue
                except SerialError:
                    # The other thread was faster with a later one.
                    break

    def read() -> None:
        while not done.is_set():
            deciding = store.active
            if not seen or seen[-1] is not deciding:
                seen.append(deciding)
                assert deciding.decide(ASKED).allowed

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=put, args=(name,)) for name in ("a", "a", "b", "b")]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    places = [next(place for place, each in enumerate(in_force) if each is found) for found in seen]
    assert places == sorted(places)
    assert in_force[-1].revision == "a@r11,b@r11"
    assert store.active is in_force[-1]
    serials = [tuple(int(part.split("@r")[1]) for part in each.revision.split(",")) for each in in_force]
    for before, after in itertools.pairwise(serials):
        # One policy at a time, forward.
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_a_store_without_a_directory_forgets_and_closes() -> None:
    store = a_store()
    store.put(made.archive(1), "", "alice")
    store.close()
    assert states(a_store()) == ()


def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    file.write_text("x")
    with pytest.raises(HistoryError, match="cannot be used"):
        a_store(file)
