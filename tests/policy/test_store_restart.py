"""The store over a restart: what survives, and what the configuration changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from saegis_server.policy.errors import (
    BundleError,
    CompileError,
    HistoryError,
    PolicyError,
    SerialError,
    SignatureError,
)
from saegis_server.policy.store.history import DiskHistory, Standing
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics
from tests.policy import made
from tests.policy.bundles import write_files
from tests.policy.stores import closed, opened, states


def written(folder: Path, serial: int, **options: str) -> Path:
    for file in sorted(folder.rglob("*.*")) if folder.exists() else ():
        file.unlink()
    return write_files(folder, made.files(serial, **options))


def failures(metrics: Metrics) -> dict[str, float]:
    """How many bundles failed, by kind, and whether the last one came in force."""
    found = {}
    for family in metrics.registry.collect():
        for each in family.samples:
            if each.name == "saegis_policy_reload_failures_total" and each.value:
                found[each.labels["kind"]] = each.value
            if each.name == "saegis_policy_last_reload_successful":
                found["successful"] = each.value
    return found


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    one = store.put(made.archive(1), "", "alice")
    two = store.put(made.archive(2), one.etag, "bob")
    store.put(made.archive(3), two.etag, "bob", shadow=True)
    store.put(made.archive(7, name="other"), "", "carol")
    before, history = (store.active, states(store)), store.history("harm")
    store.close()
    again, metrics = opened(tmp_path)
    assert states(again) == before[1]
    assert again.active.revision == before[0].revision == "harm@r2,other@r7"
    assert [each.name for each in again.active.candidates] == ["harm"]
    assert again.history("harm") == history
    assert failures(metrics) == {"successful": 1.0}
    # The history is there to roll back to.
    back = again.roll_back("harm", one.active.digest, before[1][0].etag, "dave")
    again.close()
    (harm, _) = closed(tmp_path)
    assert harm == back
    final, _ = opened(tmp_path)
    with pytest.raises(SerialError):
        final.put(made.archive(3, extra="urgent: true"), back.etag, "alice")
    assert final.put(made.archive(4), back.etag, "alice").active.serial == 4
    final.close()


def test_the_newer_of_configured_and_persisted_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, configured = tmp_path / "state", tmp_path / "bundle"
    (first,) = closed(state, written(configured, 2))
    assert (first.active.serial, first.active.put_by) == (2, "start")
    assert closed(state, configured) == (first,)
    assert closed(state) == (first,)
    (second,) = closed(state, written(configured, 3))
    assert second.active.serial == 3
    with caplog.at_level(logging.WARNING, "saegis.policy"):
        assert closed(state, written(configured, 1)) == (second,)
    assert "harm@r1 stays out of force" in caplog.text


def test_a_roll_back_survives_the_configured_bundle(tmp_path: Path) -> None:
    state, configured = tmp_path / "state", tmp_path / "bundle"
    (first,) = closed(state, written(configured, 1))
    written(configured, 2)
    store, _ = opened(state, configured)
    back = store.roll_back("harm", first.active.digest, store.get("harm")[0].etag, "alice")
    store.close()
    assert closed(state, configured) == (back,)


@pytest.mark.parametrize(("kind", "broken", "told"), made.BROKEN)
def test_a_broken_configured_bundle_leaves_the_last_good_in_force(
    tmp_path: Path,
    kind: str,
    broken: Callable[[int], bytes],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    state, configured = tmp_path / "state", tmp_path / "bundle.tar.gz"
    configured.write_bytes(made.archive(1))
    (good,) = closed(state, configured)
    configured.write_bytes(broken(2))
    with caplog.at_level(logging.ERROR, "saegis.policy"):
        store, metrics = opened(state, configured)
    store.close()
    assert states(store) == (good,)
    assert failures(metrics) == {kind: 1.0, "successful": 0.0}
    assert f"kind={kind} by=start" in caplog.text
    assert told in caplog.text
    assert "the last good one of harm is" in caplog.text
    # Without a last good one, the start fails rather than go on without the policy.
    if kind != "serial":
        with pytest.raises(PolicyError) as raised:
            opened(tmp_path / "empty", configured)
        assert raised.value.kind == kind


def test_a_configured_bundle_that_is_gone_leaves_the_last_good_in_force(tmp_path: Path) -> None:
    configured = written(tmp_path / "bundle", 1)
    (good,) = closed(tmp_path / "state", configured)
    gone = configured.rename(tmp_path / "elsewhere")
    assert closed(tmp_path / "state", configured) == (good,)
    with pytest.raises(BundleError):
        opened(tmp_path / "state", tmp_path / "never")
    assert closed(tmp_path / "state", gone) == (good,)


def test_two_configured_bundles_of_one_policy_are_refused(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one", 1), written(tmp_path / "two", 2)
    with pytest.raises(PolicyError, match="another configured bundle is of the policy 'harm'"):
        opened(tmp_path / "state", one, two)


def test_what_was_persisted_is_verified_again(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "state", keys=(1,))
    store.put(made.archive(1, signed=1), "", "alice")
    store.close()
    with pytest.raises(SignatureError, match="not trusted"):
        opened(tmp_path / "state", keys=(2,))
    # The same content, signed with the new key, is configured: it takes the place of the old archive.
    configured = tmp_path / "bundle.tar.gz"
    configured.write_bytes(made.archive(1, signed=2))
    store, metrics = opened(tmp_path / "state", configured, keys=(2,))
    assert failures(metrics) == {"signature": 1.0, "successful": 0.0}
    store.close()
    assert closed(tmp_path / "state", keys=(2,))[0].active.serial == 1


def test_a_policy_that_fits_no_longer_stops_the_start(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    store.put(made.archive(1), "", "alice")
    store.close()
    with pytest.raises(CompileError, match="first"):
        opened(tmp_path, whole=False)


def archives(directory: Path) -> list[Path]:
    return sorted(directory.glob("harm/*.tar.gz"))


def test_a_changed_archive_stops_the_start(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    store.put(made.archive(1), "", "alice")
    store.close()
    (file,) = archives(tmp_path)
    for other in (made.archive(2), made.archive(1, name="other")):
        file.write_bytes(other)
        with pytest.raises(HistoryError, match="not the bundle that was put"):
            opened(tmp_path)
    file.write_bytes(b"cut off")
    with pytest.raises(BundleError):
        opened(tmp_path)
    file.unlink()
    with pytest.raises(HistoryError, match="cannot be read"):
        opened(tmp_path)
    # The configuration brings the same bundle again.
    configured = written(tmp_path / "bundle", 1)
    closed(tmp_path, configured)
    assert closed(tmp_path)[0].active.serial == 1


def test_a_broken_candidate_is_left_out(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    one = store.put(made.archive(1), "", "alice")
    beside = store.put(made.archive(2), one.etag, "alice", shadow=True)
    store.close()
    archives(tmp_path)[1].write_bytes(b"cut off")
    again, metrics = opened(tmp_path)
    (state,) = states(again)
    assert (state.active, state.shadow) == (one.active, None)
    assert state.etag != beside.etag
    assert failures(metrics) == {"bundle": 1.0, "successful": 0.0}
    again.close()
    assert closed(tmp_path) == (state,)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.pop("active"),
        lambda told: told.update(format=2),
        lambda told: told.update(active="0" * 64),
        lambda told: told.update(highest=0),
        lambda told: told.update(highest="2"),
        lambda told: told.update(more=1),
        lambda told: told.update(name="other"),
        lambda told: told["revisions"][0].update(put_time="yesterday"),
        lambda told: told["revisions"][0].update(serial="1"),
        lambda told: told["revisions"][0].pop("digest"),
        lambda told: told.update(revisions=3),
    ],
)
def test_a_state_that_says_nothing_clear_stops_the_start(
    tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    store, _ = opened(tmp_path)
    store.put(made.archive(1), "", "alice")
    store.close()
    file = tmp_path / "harm/state.json"
    told = json.loads(file.read_bytes())
    change(told)
    file.write_text(json.dumps(told))
    with pytest.raises(HistoryError, match=r"state\.json"):
        opened(tmp_path)


def test_one_server_has_the_directory(tmp_path: Path) -> None:
    store, _ = opened(tmp_path)
    with pytest.raises(HistoryError, match="another server"):
        opened(tmp_path)
    store.close()
    closed(tmp_path)


def test_files_are_for_the_server_alone(tmp_path: Path) -> None:
    store, _ = opened(tmp_path / "state")
    store.put(made.archive(1), "", "alice")
    store.close()
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_put_that_cannot_be_kept_does_not_come_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from some write on, wherever in a put that is."""
    store, metrics = opened(tmp_path)
    state = store.put(made.archive(1), "", "alice")
    write, left = os.write, [0]

    def full(descriptor: int, data: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr("saegis_server.policy.store.history.os.write", full)
        for writes in range(2):
            left[0] = writes
            with pytest.raises(HistoryError, match="No space left"):
                store.put(made.archive(2), state.etag, "alice")
            assert store.get("harm")[0] == state
            assert failures(metrics)["state"] == writes + 1.0
    assert store.put(made.archive(2), state.etag, "alice").active.serial == 2
    store.close()


def test_a_standing_reads_back() -> None:
    store = PolicyStore(made.world(), Metrics())
    store.put(made.archive(1), "", "alice")
    standing = store._policy("harm").standing
    assert Standing.from_json(standing.to_json()) == standing


def test_a_history_closes_twice(tmp_path: Path) -> None:
    history = DiskHistory(tmp_path)
    history.close()
    history.close()
