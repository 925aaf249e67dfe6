"""The ready file: it stands for a server that runs, and is deleted by its writer alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from saegis_server.rpc.server.address import ReadyFile
from saegis_server.rpc.server.config import Address

ADDRESS = Address(host="127.0.0.1", port=7, metrics_port=8)
KILLED = """
import os, signal, sys
from pathlib import Path
from saegis_server.rpc.server.config import Address
from saegis_server.rpc.server.address import ReadyFile
file = ReadyFile(Path(sys.argv[1]))
file.write(Address(host="127.0.0.1", port=1, metrics_port=None))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_says_where_and_by_whom(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    file = ReadyFile(path)
    assert list(tmp_path.iterdir()) == []
    file.write(ADDRESS)
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told == {"target": "127.0.0.1:7", "metrics_port": 8, "pid": os.getpid()}
    file.remove()
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_one_that_a_killed_server_left_is_taken_away_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.exists()
    file = ReadyFile(path)
    assert not path.exists()
    file.write(ADDRESS)
    assert json.loads(path.read_text(encoding="utf-8"))["pid"] == os.getpid()
    file.remove()


def test_that_of_a_running_server_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    first, rival = ReadyFile(path), ReadyFile(path)
    first.write(ADDRESS)
    with pytest.raises(FileExistsError, match="a running server has written it"):
        ReadyFile(path)
    with pytest.raises(FileExistsError, match="a running server has written it"):
        rival.write(ADDRESS)
    rival.remove()
    assert path.exists()
    first.remove()


def test_what_somebody_else_put_in_its_place_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    file = ReadyFile(path)
    file.write(ADDRESS)
    path.unlink()
    path.write_text("another's", encoding="utf-8")
    file.remove()
    assert path.read_text(encoding="utf-8") == "another's"


def test_a_place_where_none_can_be_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReadyFile(tmp_path / "missing" / "ready.json")
    with pytest.raises(FileExistsError, match="no plain file"):
        ReadyFile(tmp_path)
    assert tmp_path.is_dir()
    ReadyFile(None).write(ADDRESS)
    ReadyFile(None).remove()
