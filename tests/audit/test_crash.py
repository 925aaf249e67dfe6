"""kill -9 at every point of the audit writer: no acknowledged record is lost, and the chain goes on."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saegis_server.audit.files import ACTIVE, closed_files, log_files
from saegis_server.audit.log import AuditLog
from saegis_server.audit.verify import verify
from tests.audit import crash, logs

#: Kills at each point, in a row, on one log.
KILLS = 10
#: The points, and up to which call of the operation the process may live.
POINTS = {
    ("open", "before"): 3,
    ("open", "after"): 3,
    ("write", "before"): 9,
    ("write", "half"): 9,
    ("write", "after"): 9,
    ("fsync", "before"): 9,
    ("fsync", "after"): 9,
    ("truncate", "before"): 1,
    ("truncate", "after"): 1,
    ("rename", "before"): 3,
    ("rename", "after"): 3,
    ("sync_directory", "before"): 4,
    ("sync_directory", "after"): 4,
}
DELETING_POINTS = {("remove", "before"): 3, ("remove", "after"): 3, ("write", "after"): 9}


class Victim:
    """The process that forks those that are killed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, crash.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, directory: Path, point: tuple[str, str], count: int, keep: int | None) -> dict[str, Any]:
        """Write to a log until death at the `count`-th passing of the point."""
        operation, moment = point
        order = {
            "directory": str(directory),
            "operation": operation,
            "moment": moment,
            "count": count,
            "keep": keep,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    found = Victim()
    yield found
    found.end()


def tear(directory: Path) -> None:
    """Leave the beginning of a record at the log's end, as a kill in the middle of a write does."""
    with (directory / ACTIVE).open("ab") as file:
        file.write(b'{"action":"put')


def hashes(directory: Path) -> dict[int, str]:
    """The hash of every whole line of a log, by its number."""
    found = {}
    for path in log_files(directory):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                record = json.loads(line)
                found[record["seq"]] = record["hash"]
    return found


def kill(
    victim: Victim, directory: Path, point: tuple[str, str], last: int, keep: int | None
) -> dict[int, str]:
    """Kill KILLS processes that write to one log and check it after each; returns what was acknowledged."""
    chance = random.Random(f"{point}")
    acknowledged: dict[int, str] = {}
    kills = 0
    for _ in range(4 * KILLS):
        if point[0] == "truncate":
            tear(directory)
        ended = victim.run(directory, point, chance.randint(1, last), keep)
        assert (ended["signal"], ended["code"]) in ((signal.SIGKILL, 0), (0, 0))
        kills += ended["signal"] == signal.SIGKILL
        acknowledged |= dict(ended["acknowledged"])
        there = hashes(directory)
        oldest = min(there, default=1)
        assert {seq: each for seq, each in acknowledged.items() if seq >= oldest}.items() <= there.items()
        problems = verify(directory).problems if log_files(directory) else ()
        assert len(problems) <= 1
        assert all(each.file == ACTIVE and each.message == "the line is cut off" for each in problems)
        if kills == KILLS:
            return acknowledged
    raise AssertionError(f"only {kills} processes reached {point}")


@pytest.mark.parametrize("point", POINTS, ids="-".join)
def test_no_acknowledged_record_is_lost(victim: Victim, tmp_path: Path, point: tuple[str, str]) -> None:
    acknowledged = kill(victim, tmp_path, point, POINTS[point], None)
    torn_before = len(list(tmp_path.glob("audit.torn-*")))
    is_torn = bool(verify(tmp_path).problems) if log_files(tmp_path) else False
    AuditLog(logs.settings(tmp_path, max_bytes=2048)).close()
    assert len(list(tmp_path.glob("audit.torn-*"))) == torn_before + is_torn
    assert verify(tmp_path).problems == ()
    found = logs.lines(tmp_path)
    assert logs.is_chain(found)
    assert acknowledged.items() <= {record["seq"]: record["hash"] for record in found}.items()


@pytest.mark.parametrize("point", DELETING_POINTS, ids="-".join)
def test_deletion_leaves_a_log_that_says_so(victim: Victim, tmp_path: Path, point: tuple[str, str]) -> None:
    kill(victim, tmp_path, point, DELETING_POINTS[point], keep=2)
    AuditLog(logs.settings(tmp_path, max_bytes=2048, keep=2)).close()
    found = verify(tmp_path)
    assert found.problems == ()
    assert any("was deleted, as record" in note for note in found.notes)
    assert 2 <= len(closed_files(tmp_path)) <= 3


def test_acknowledgements_do_come(victim: Victim, tmp_path: Path) -> None:
    """A process that lives acknowledges all it was given, so that the tests above speak of something."""
    ended = victim.run(tmp_path, ("write", "before"), 10_000, None)
    assert (ended["signal"], ended["code"]) == (0, 0)
    assert len(ended["acknowledged"]) == crash.THREADS * crash.RECORDS
