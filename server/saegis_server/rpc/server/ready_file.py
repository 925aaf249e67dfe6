"""The ready file: says where a server listens; the server writes it once it serves, and deletes it."""

import errno
import fcntl
import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from saegis_server.rpc.server.config import Address


class ReadyFile:
    """Tells other programs that a server serves, and where; with `path` None there is none.

    It stands for a living process: its writer holds a lock on it, which ends with the process however that
    ends. So the next server knows the file of a killed one, and deletes it at its start: it must not seem
    ready while it loads.
    """

    def __init__(self, path: Path | None) -> None:
        """Check that it can be written, and take away one that no running server holds.

        Raises OSError, also where a running server has written it.
        """
        self._path = path
        self._held = -1
        if path is not None:
            self._take_away_stale(path)
            try:
                with tempfile.TemporaryFile(dir=path.parent):
                    pass
            except OSError as error:
                raise OSError(
                    error.errno, f"no ready file can be written here: {error.strerror}", str(path.parent)
                ) from error

    def write(self, address: Address) -> None:
        """Write it, whole or not at all. Raises OSError."""
        path = self._path
        if path is None:
            return
        self._take_away_stale(path)
        content = {"target": address.target, "metrics_port": address.metrics_port, "pid": os.getpid()}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._held = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._held, f"{json.dumps(content)}\n".encode())
        partial.replace(path)

    def remove(self) -> None:
        """Delete it, if this process has written the one that is there. Twice is once."""
        if self._path is None or self._held < 0:
            return
        with suppress(FileNotFoundError):
            if os.path.samestat(self._path.lstat(), os.fstat(self._held)):
                self._path.unlink()
        os.close(self._held)
        self._held = -1

    @staticmethod
    def _take_away_stale(path: Path) -> None:
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise OSError(errno.EEXIST, "is there and is no plain file; name another", str(path))
            held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            raise OSError(
                errno.EEXIST, "a running server has written it; name another with --ready-file", str(path)
            ) from None
        finally:
            os.close(held)
