"""Where a server listens: its port or Unix socket, checked before use, and the ready file."""

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

#: The most bytes of a Unix socket's path that the system takes.
LONGEST_PATH = 107


def check_port(host: str, port: int, option: str) -> None:
    """Raise OSError, with a message that names the option, if nothing can listen on a port of this host.

    gRPC does not say why it failed, and of a name's several addresses it needs only one.
    """
    for family, _, _, _, address in _addresses(host, port):
        try:
            with socket.create_server(address[:2], family=family):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                message = f"port {port} of {host} is taken: choose another with {option}, or 0 for a free one"
            elif error.errno == errno.EACCES:
                message = f"port {port} is not for this user: choose one from 1024 on with {option}"
            elif host == "localhost" and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # Machines without IPv6 may still have an IPv6 address for localhost.
            else:
                message = f"cannot listen on port {port} of {host}: {error.strerror or error}"
            raise OSError(error.errno, message) from error


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(*info[:4], (str(info[4][0]), int(info[4][1]))) for info in infos]


class UnixSocket:
    """A path to listen on that this process holds exclusively.

    gRPC deletes whatever is at the path when it starts and stops listening. So a lock protects the path: on
    the file PATH.lock, which the system releases when the process ends.
    """

    def __init__(self, path: Path) -> None:
        """Lock the path, and delete a socket there that nobody listens on.

        Raises OSError, also if somebody listens there or the path is no socket.
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
        """Files made in this block have mode 0600 from the start: only their owner has access."""
        before = os.umask(0o177)
        try:
            yield
        finally:
            os.umask(before)

    def close(self) -> None:
        """Release the path for other processes."""
        os.close(self._held)


def _taken(path: Path) -> OSError:
    return OSError(errno.EADDRINUSE, "another server listens there; name another with --unix", str(path))


class ReadyFile:
    """A file that tells other programs that a server serves, and where. With `path` None there is no file.

    The server holds a lock on it, which the system releases when the process ends. So the next server
    recognizes the file of a killed one and deletes it before it loads, since it is not ready yet.
    """

    def __init__(self, path: Path | None) -> None:
        """Check that the file can be written, and delete one that no running server holds.

        Raises OSError, also if a running server has written it.
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
        """Write the file atomically. Raises OSError."""
        path = self._path
        if path is None:
            return
        self._take_away_stale(path)
        content: dict[str, object] = {
            "target": address.target,
            "metrics_port": address.metrics_port,
            "pid": os.getpid(),
        }
        if address.http_port is not None:
            content["http_port"] = address.http_port
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._held = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self._held, f"{json.dumps(content)}\n".encode())
        partial.replace(path)

    def remove(self) -> None:
        """Delete the file if this process has written it. May be called twice."""
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
