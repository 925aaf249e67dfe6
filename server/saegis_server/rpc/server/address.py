"""Where a server listens: ports and the Unix socket, free before they are taken, and the ready file."""

import errno
import fcntl
import json
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saegis_server.rpc.server.config import Address

#: The most bytes of a Unix socket's path, by the system's own structure.
LONGEST_PATH = 107


def check_port(host: str, port: int, option: str) -> None:
    """Raise OSError, in a sentence that names the option, where nothing can listen on a port of this host.

    gRPC itself only says that it failed, and where a name has several addresses it is content with one.
    """
    for family, _, _, _, address in _addresses(host, port):
        try:
            with socket.create_server(address[:2], family=family):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                told = f"port {port} of {host} is taken: choose another with {option}, or 0 for a free one"
            elif error.errno == errno.EACCES:
                told = f"port {port} is not for this user: choose one from 1024 on with {option}"
            elif host == "localhost" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # Machines without IPv6 may know localhost by an address of it all the same.
            else:
                told = f"cannot listen on port {port} of {host}: {error.strerror or error}"
            raise OSError(error.errno, told) from error


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(*each[:4], (str(each[4][0]), int(each[4][1]))) for each in found]


class UnixSocket:
    """A path to listen on, which this process alone has for as long as it holds it.

    gRPC deletes whatever lies at the path when it begins and ends to listen. So the path is held by a lock on
    the file PATH.lock, which ends with the process, however that ends.
    """

    def __init__(self, path: Path) -> None:
        """Hold the path, and take away a socket that nobody listens on.

        Raises OSError, also where somebody does, or something else lies there.
        """
        self.path = path
        if len(os.fsencode(path)) > LONGEST_PATH:
            raise OSError(errno.ENAMETOOLONG, f"a socket's path has at most {LONGEST_PATH} bytes", str(path))
        lock = path.with_name(f"{path.name}.lock")
        try:
            self._held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OSError(
                error.errno, f"no socket can be made in this folder: {error.strerror}", str(path.parent)
            ) from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_away_stale()
        except BlockingIOError:
            self.close()
            raise _taken(path) from None
        except BaseException:
            self.close()
            raise

    def _take_away_stale(self) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise OSError(errno.EEXIST, "is there and is no socket; name another", str(self.path))
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(1.0)
                try:
                    caller.connect(str(self.path))
                except ConnectionRefusedError:
                    self.path.unlink()
                else:
                    raise _taken(self.path)

    @contextmanager
    def for_its_owner(self) -> Iterator[None]:
        """What is made in this block is its owner's alone: mode 0600, from the first moment."""
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)

    def close(self) -> None:
        """Let another process have the path."""
        os.close(self._held)


def _taken(path: Path) -> OSError:
    return OSError(errno.EADDRINUSE, "another server listens there; name another with --unix", str(path))


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
