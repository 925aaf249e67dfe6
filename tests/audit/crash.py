"""A process that is killed, again and again, while it writes an audit log.

Reads orders as JSON lines from standard input and answers each with one on standard output. For an order it
forks a child, which opens the log of a directory and appends records from several threads until it kills
itself at the named point; the answer says whether it did, and which records were acknowledged before.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from saegis_server.audit.files import Disk
from saegis_server.audit.log import AuditLog, AuditSettings
from saegis_server.audit.records import PolicyRecord

THREADS = 3
RECORDS = 12


class DeadlyDisk(Disk):
    """A disk that kills its process before, in the middle of or after the `count`-th call of an operation."""

    def __init__(self, operation: str, moment: str, count: int) -> None:
        self._operation = operation
        self._moment = moment
        self._left = count

    def _is_it(self, operation: str) -> bool:
        if operation != self._operation:
            return False
        self._left -= 1
        return self._left == 0

    def _before(self, is_it: bool) -> None:
        if is_it and self._moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)

    def _after(self, is_it: bool) -> None:
        if is_it and self._moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def open(self, path: Path, create: bool) -> int:
        is_it = self._is_it("open")
        self._before(is_it)
        descriptor = super().open(path, create)
        self._after(is_it)
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        is_it = self._is_it("write")
        self._before(is_it)
        if is_it and self._moment == "half":
            super().write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        written = super().write(descriptor, data)
        self._after(is_it)
        return written

    def fsync(self, descriptor: int) -> None:
        is_it = self._is_it("fsync")
        self._before(is_it)
        super().fsync(descriptor)
        self._after(is_it)

    def truncate(self, descriptor: int, size: int) -> None:
        is_it = self._is_it("truncate")
        self._before(is_it)
        super().truncate(descriptor, size)
        self._after(is_it)

    def rename(self, path: Path, target: Path) -> None:
        is_it = self._is_it("rename")
        self._before(is_it)
        super().rename(path, target)
        self._after(is_it)

    def remove(self, path: Path) -> None:
        is_it = self._is_it("remove")
        self._before(is_it)
        super().remove(path)
        self._after(is_it)

    def sync_directory(self, directory: Path) -> None:
        is_it = self._is_it("sync_directory")
        self._before(is_it)
        super().sync_directory(directory)
        self._after(is_it)


def child(order: dict[str, Any], acknowledged: int) -> None:
    """Write until death; tells each acknowledged record on the descriptor `acknowledged`."""
    settings = AuditSettings(directory=Path(order["directory"]), max_bytes=2048, keep=order["keep"])
    log = AuditLog(settings, disk=DeadlyDisk(order["operation"], order["moment"], order["count"]))

    def work(worker: int) -> None:
        for number in range(RECORDS):
            place = log.append(
                PolicyRecord(action="put", name=f"{worker}-{number}", digest="d" * 64)
            ).result()
            os.write(acknowledged, f"{place.seq} {place.hash}\n".encode())

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Run one child; returns how it ended and what was acknowledged."""
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(readable)
        code = 1
        try:
            child(order, writable)
            code = 0
        finally:
            os._exit(code)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        places = [line.split() for line in pipe]
    _, status = os.waitpid(process, 0)
    return {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0,
        "acknowledged": [[int(seq), digest] for seq, digest in places],
    }


if __name__ == "__main__":
    for text in sys.stdin:
        print(json.dumps(obey(json.loads(text))), flush=True)
