"""The audit log: its records, their order and chain, rotation and deletion."""

import asyncio
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from saegis_server.audit import AuditUnavailableError, Fsync
from saegis_server.audit.chain import Link
from saegis_server.audit.files import ACTIVE, Disk, closed_files, log_files
from saegis_server.audit.log import AuditLog, IdentityFailures
from saegis_server.audit.verify import verify
from saegis_server.telemetry.metrics import Metrics
from tests.audit import logs
from tests.audit.logs import answer, decision, is_chain, lines, put, settings, write


class SlowDisk(Disk):
    """A disk that stops at each fsync until it is let on, and counts them."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.syncs = 0

    def fsync(self, descriptor: int) -> None:
        self.go.wait(10.0)
        self.syncs += 1
        super().fsync(descriptor)


def test_records_stand_in_the_log_as_they_came(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path / "log"))
    places = [log.append(each).result() for each in (decision(), answer(), put())]
    assert log.head == places[-1]
    log.close()
    found = lines(tmp_path / "log")
    assert [record["kind"] for record in found] == ["start", "decision", "answer", "policy", "stop"]
    assert [Link(record["seq"], record["hash"]) for record in found[1:4]] == places
    assert is_chain(found)
    assert found[1]["edits"][0]["label"] == "桥"
    assert found[1]["roles"] == ["use", "steer"]
    assert found[2]["usage"] == {"completion_tokens": 7, "prompt_tokens": 5}
    assert found[0]["chain"] == "sha256"
    assert all(record["time"].endswith("Z") and len(record["time"]) == 27 for record in found)


def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        write(settings(tmp_path), 4)
    found = lines(tmp_path)
    assert len(found) == 18
    assert is_chain(found)
    assert verify(tmp_path).problems == ()


def test_many_threads_and_small_files(tmp_path: Path) -> None:
    found = settings(tmp_path, max_bytes=2048)
    log = AuditLog(found)
    places: list[Link] = []

    def work(worker: int) -> None:
        for number in range(25):
            places.append(log.append(put(100 * worker + number)).result())

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    records = lines(tmp_path)
    assert is_chain(records)
    assert sorted(place.seq for place in places) == list(range(2, 202))
    assert {record["seq"]: record["hash"] for record in records}.items() >= {
        (place.seq, place.hash) for place in places
    }
    assert {record["name"] for record in records[1:-1]} == {
        f"policy-{100 * worker + number}" for worker in range(8) for number in range(25)
    }
    assert len(closed_files(tmp_path)) > 20
    assert all(path.stat().st_size <= 2048 for path in log_files(tmp_path))
    assert verify(tmp_path).problems == ()


def test_a_record_larger_than_a_file_gets_its_own(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path, max_bytes=1024))
    log.append(put(by="x" * 5000)).result()
    log.append(put()).result()
    log.close()
    assert is_chain(lines(tmp_path))
    assert max(path.stat().st_size for path in log_files(tmp_path)) > 5000
    assert len(closed_files(tmp_path)) == 2


def test_what_waits_is_forced_to_the_disk_together(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = AuditLog(settings(tmp_path), disk=disk)
    disk.go.clear()
    first = log.append(put())
    while log.waiting:
        time.sleep(0.001)
    rest = [log.append(put(number)) for number in range(200)]
    assert not any(future.done() for future in [first, *rest])
    before = disk.syncs
    disk.go.set()
    assert [future.result().seq for future in [first, *rest]] == list(range(2, 203))
    assert disk.syncs == before + 2
    log.close()


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    disk, metrics = SlowDisk(), Metrics()
    log = AuditLog(settings(tmp_path, queue=3), metrics, disk)
    metrics.observe_audit(lambda: log.waiting, lambda: log.head.seq, lambda: log.is_failing)
    disk.go.clear()
    first = log.append(put())
    while log.waiting:
        time.sleep(0.001)
    waiting = [log.append(put()) for _ in range(3)]
    assert metrics.registry.get_sample_value("saegis_audit_buffer_records") == 3.0
    with pytest.raises(AuditUnavailableError, match="3 records wait already"):
        log.append(put()).result()
    disk.go.set()
    for future in [first, *waiting]:
        future.result()
    log.close()
    found = lines(tmp_path)
    assert [record["kind"] for record in found] == ["start", "policy", "lost", *["policy"] * 3, "stop"]
    assert found[2]["records"] == 1
    value = metrics.registry.get_sample_value
    assert value("saegis_audit_records_total", {"kind": "policy"}) == 4.0
    assert value("saegis_audit_errors_total") == 1.0
    assert value("saegis_audit_last_record") == 7.0


def test_with_an_interval_records_are_acknowledged_before_they_are_forced(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = AuditLog(settings(tmp_path, fsync=Fsync.INTERVAL, interval_seconds=1.0), disk=disk)
    for _ in range(10):
        log.append(put()).result()
    assert disk.syncs <= 1
    until = time.monotonic() + 5.0
    while disk.syncs == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert disk.syncs >= 1
    log.close()
    assert is_chain(lines(tmp_path))


def test_never_forces_nothing(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = AuditLog(settings(tmp_path, fsync="never", max_bytes=1024), disk=disk)
    for _ in range(20):
        log.append(put()).result()
    log.close()
    assert disk.syncs == 0
    assert len(closed_files(tmp_path)) > 2


def test_prompts_are_written_only_where_asked(tmp_path: Path) -> None:
    for prompts in (False, True):
        directory = tmp_path / str(prompts)
        log = AuditLog(settings(directory, prompts=prompts))
        log.append(decision(prompt="what nobody should read")).result()
        log.close()
        assert (b"nobody should read" in (directory / ACTIVE).read_bytes()) is prompts
        assert ("prompt" in lines(directory)[1]) is prompts


def test_masked_values_are_not_in_the_file(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path, prompts=True, mask=("/prompt", "/edits/*/label", "/nothing")))
    log.append(decision(prompt="secret words")).result()
    log.close()
    record = lines(tmp_path)[1]
    assert record["prompt"] == record["edits"][0]["label"] == "[masked]"
    assert record["masked"] == ["/edits/0/label", "/prompt"]
    text = (tmp_path / ACTIVE).read_text(encoding="utf-8")
    assert "secret" not in text
    assert "桥" not in text
    assert is_chain(lines(tmp_path))


def test_a_record_without_a_form_in_json_fails_alone(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path))
    with pytest.raises(ValueError, match=r"decision\.edits\[0\]\.value: nan"):
        log.append(decision(edits=({"value": float("nan")},)))
    with pytest.raises(ValueError, match=r"decision\.tenant: has no form in UTF-8"):
        log.append(decision(tenant="\ud800"))
    log.append(decision()).result()
    log.close()
    assert [record["kind"] for record in lines(tmp_path)] == ["start", "decision", "stop"]


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path))
    log.close()
    log.close()
    with pytest.raises(AuditUnavailableError, match="closed"):
        log.append(put()).result()
    assert len(lines(tmp_path)) == 2


async def test_require_waits_for_the_record(tmp_path: Path) -> None:
    disk = SlowDisk()
    log = AuditLog(settings(tmp_path), disk=disk)
    disk.go.clear()
    waiting = asyncio.create_task(log.require(put(1)))
    given_up = asyncio.create_task(log.require(put(2)))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    given_up.cancel()
    disk.go.set()
    place = await waiting
    assert place is not None
    assert place.seq == 2
    log.close()
    assert [record["name"] for record in lines(tmp_path)[1:3]] == ["policy-1", "policy-2"]


@pytest.mark.parametrize("on_failure", ["refuse", "continue"])
async def test_require_refuses_or_goes_on(tmp_path: Path, on_failure: str) -> None:
    metrics = Metrics()
    log = AuditLog(settings(tmp_path, on_failure=on_failure), metrics)
    log.close()
    if on_failure == "refuse":
        with pytest.raises(AuditUnavailableError):
            await log.require(put())
        with pytest.raises(AuditUnavailableError):
            log.require_blocking(put())
    else:
        assert await log.require(put()) is None
        assert log.require_blocking(put()) is None
    assert metrics.registry.get_sample_value("saegis_audit_errors_total") == 2.0


def test_old_files_are_deleted_and_the_log_says_so(tmp_path: Path) -> None:
    write(settings(tmp_path, max_bytes=2048, keep=2), 60)
    closed = closed_files(tmp_path)
    assert len(closed) == 2
    found = verify(tmp_path)
    assert found.problems == ()
    assert found.first is not None
    assert found.first.seq == closed[0].first > 1
    assert "was deleted, as record" in found.notes[0]
    # A file that goes without such a record is missed.
    closed[0].path.unlink()
    assert "no record tells of a deletion" in str(verify(tmp_path).problems[0])


def test_a_smaller_keep_holds_from_the_start(tmp_path: Path) -> None:
    write(settings(tmp_path, max_bytes=1024), 30)
    assert len(closed_files(tmp_path)) > 5
    write(settings(tmp_path, max_bytes=2**20, keep=3), 1)
    assert len(closed_files(tmp_path)) == 3
    assert verify(tmp_path).problems == ()


def test_failed_authentications_are_bounded(tmp_path: Path) -> None:
    now = 0.0
    log = AuditLog(settings(tmp_path))
    failures = IdentityFailures(log, per_minute=3, clock=lambda: now)
    for _ in range(10):
        failures.record("/saegis.v1.ModelService/GetModel", "ipv4:127.0.0.1:1", "unknown token")
    now = 20.0
    failures.record("/saegis.v1.ModelService/GetModel", "ipv4:127.0.0.1:1", "unknown token")
    log.close()
    found = [record for record in lines(tmp_path) if record["kind"] == "identity"]
    assert [record["suppressed"] for record in found] == [0, 0, 0, 7]


def test_no_failed_authentication_is_written_where_the_bound_is_0(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path))
    IdentityFailures(log, per_minute=0).record("method", "peer", "reason")
    log.close()
    assert [record["kind"] for record in lines(tmp_path)] == ["start", "stop"]


def test_a_future_is_told_once(tmp_path: Path) -> None:
    log = AuditLog(settings(tmp_path))
    future: Future[Link] = log.append(logs.put())
    assert not future.cancel()
    assert future.result().seq == 2
    log.close()
