"""The modes of the files that a server trusts or keeps secret: whom it warns about at its start."""

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

from saegis_server.rpc.server.config import ServerConfig

log = logging.getLogger("saegis.rpc")


def warn_of_modes(config: ServerConfig) -> None:
    """Warn about secrets that others can read, and about what others could change to get more than theirs."""
    for problem in open_files(config):
        log.warning("%s", problem)


def open_files(config: ServerConfig) -> Iterator[str]:
    """What is wrong with the modes of a configuration's files, and how to mend it."""
    tls, audit, policies = config.tls, config.audit, config.policies
    secrets = [
        ("the TLS key", tls.key if tls else None),
        ("the key of the audit log", audit.key_file if audit else None),
    ]
    trusted: list[tuple[str, Path | None]] = [
        ("the file of identities", config.identities),
        ("the TLS certificate", tls.cert if tls else None),
        ("the client CA", tls.client_ca if tls else None),
        ("the audit log", audit.directory if audit else None),
        ("the state of policies", policies.state if policies else None),
        *(("a policy key", key) for key in (policies.keys if policies else ())),
        *(("a policy", bundle) for bundle in (policies.bundles if policies else ())),
    ]
    for what, path in secrets:
        if (mode := _mode(path)) & (stat.S_IRWXG | stat.S_IRWXO):
            yield f"{what} {path} can be read or changed by others (mode {mode:04o}): chmod 600 {path}"
    for what, path in trusted:
        if (mode := _mode(path)) & (stat.S_IWGRP | stat.S_IWOTH):
            yield f"{what} {path} can be changed by others (mode {mode:04o}): chmod go-w {path}"


def _mode(path: Path | None) -> int:
    """The mode of a path; none for what is not there, which is told elsewhere."""
    try:
        return 0 if path is None else stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0
