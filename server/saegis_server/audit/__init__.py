"""The audit log: hash-chained records of decisions and answers, written before an answer ends.

The words and errors that all of it shares are here, so that the command line need not load more.
"""

from enum import StrEnum


class Fsync(StrEnum):
    """When records are forced to the disk, so that they outlive the machine and not only the process.

    ALWAYS: before they are acknowledged. INTERVAL: every few seconds; records acknowledged since may be lost
    if the machine crashes. NEVER: when the system does it by itself.
    """

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


class OnFailure(StrEnum):
    """What happens to a request whose record cannot be written: it is refused, or goes on and is counted."""

    REFUSE = "refuse"
    CONTINUE = "continue"


class AuditError(Exception):
    """Anything that is wrong with the audit log."""


class AuditUnavailableError(AuditError):
    """A record could not be written: the disk or the queue is full, the file is gone, the log is closed."""


class AuditBrokenError(AuditError):
    """A log that must not be continued: its records form no chain, or another server holds it."""


class AuditKeyError(AuditError):
    """A key file that cannot be read or is too short."""
