"""TLS of the HTTP port: its certificates are read again once their files have changed, without a restart."""

from __future__ import annotations

import logging
import ssl

from saegis_server.rpc.server.config import TLSFiles

log = logging.getLogger("saegis.http")


class Renewed:
    """The TLS of new connections, by the files as they are now, or by the last good ones."""

    def __init__(self, files: TLSFiles) -> None:
        """Read the files. Raises OSError, and ssl.SSLError for what is no certificate with its key."""
        self._files = files
        self._seen = self._times()
        self._good = self._read()
        #: What connections begin with, and change for the current one.
        self.context = self._read()
        self.context.sni_callback = self._choose

    def _times(self) -> tuple[int, ...]:
        files = self._files
        paths = (files.cert, files.key, files.client_ca)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)

    def _read(self) -> ssl.SSLContext:
        files, context = self._files, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key, password=lambda: b"")
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called at each handshake, whether or not the client names a server."""
        try:
            if (times := self._times()) != self._seen:
                self._good, self._seen = self._read(), times
        except OSError as error:
            log.error("certificates could not be renewed: %s", error)
        connection.context = self._good
