"""A kill at any point of a put: the store comes back with the old policies or the new, never with half."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.policy import made
from tests.policy.stores import closed, opened

KILLED = """
import os, signal, sys
from pathlib import Path
from saegis_server.policy.store import history
from saegis_server.policy.store.history import Standing

names = ("open", "write", "fsync", "replace", "mkdir", "close")
directory = Path(sys.argv[1])

def put(serial, standing):
    from datetime import UTC, datetime
    from saegis_server.policy.store.history import Revision
    revision = Revision("harm", serial, f"r{serial}", f"{serial:064x}", "", datetime.now(UTC), "alice")
    standing = (standing or Standing("harm", revision.digest)).with_active(revision)
    kept.keep(revision, b"archive " * 1000 + str(serial).encode())
    kept.stand(standing)

def dying(real, before):
    def call(*args, **options):
        counted[0] += 1
        dies = counted[0] == die_at
        if dies and before:
            os.kill(os.getpid(), signal.SIGKILL)
        if dies and real is write:
            args = (args[0], bytes(args[1])[: len(args[1]) // 2])
        result = real(*args, **options)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

write = os.write
real = {name: getattr(os, name) for name in names}
rounds = 0
for first in (True, False):
    for before in (True, False):
        die_at = 0
        while True:
            die_at += 1
            folder = directory / f"{rounds}"
            child = os.fork()
            if child == 0:
                kept = history.DiskHistory(folder)
                if not first:
                    put(1, None)
                standing = kept.standings().get("harm")
                counted = [0]
                for name in names:
                    setattr(os, name, dying(real[name], before))
                put(1 if first else 2, standing)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            rounds += 1
            kept = history.DiskHistory(folder)
            standing = kept.standings().get("harm")
            kept.close()
            loaded = 0
            if standing is not None:
                kept = history.DiskHistory(folder)
                active = standing.of_digest(standing.active)
                assert kept.archive(active) == b"archive " * 1000 + str(active.serial).encode()
                loaded = active.serial
                kept.close()
            killed = os.WIFSIGNALED(status)
            assert killed or os.WEXITSTATUS(status) == 0
            assert loaded in (((0, 1) if first else (1, 2)) if killed else ((1,) if first else (2,)))
            print(int(first), int(before), die_at, int(killed), loaded, flush=True)
            if not killed:
                break
"""


def test_a_kill_at_any_step_of_a_put_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """Every call of the system within a put, killed before it, within a write, or after it."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    rounds = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    killed = [each for each in rounds if each[3]]
    assert len(killed) >= 40
    # Both outcomes come: what is not there before the rename is there after it.
    assert {(first, loaded) for first, _, _, _, loaded in killed} == {(1, 0), (1, 1), (0, 1), (0, 2)}


WHOLE_STORE = """
import os, signal, sys
from pathlib import Path
from tests.policy import made
from saegis_server.policy.store.store import PolicyStore
from saegis_server.telemetry.metrics import Metrics

def put(directory, die_at):
    store = PolicyStore(made.world(), Metrics(), directory)
    store.load_start([])
    state = store.get("harm")[0]
    replaced, replace = [0], os.replace
    def dying(*args):
        replaced[0] += 1
        if replaced[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*args)
    os.replace = dying
    store.put(made.archive(2), state.etag, "alice")

for die_at in (1, 2, 3):
    child = os.fork()
    if child == 0:
        put(Path(sys.argv[1]) / str(die_at), die_at)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_killed_server_comes_back_with_its_policies(tmp_path: Path) -> None:
    """A server is killed before its first rename (the archive), its second (the standing), and not at all."""
    states = []
    for die_at in (1, 2, 3):
        store, _ = opened(tmp_path / str(die_at))
        states.append(store.put(made.archive(1), "", "alice"))
        store.close()
    script, root = [sys.executable, "-c", WHOLE_STORE, str(tmp_path)], Path(__file__).resolve().parents[2]
    run = subprocess.run(script, check=True, capture_output=True, text=True, cwd=root)
    assert list(map(int, run.stdout.split())) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    for die_at, first in zip((1, 2, 3), states, strict=True):
        (state,) = closed(tmp_path / str(die_at))
        assert state == first if die_at < 3 else state.active.serial == 2
        again, _ = opened(tmp_path / str(die_at))
        assert again.put(made.archive(3), state.etag, "alice").active.serial == 3
        again.close()
