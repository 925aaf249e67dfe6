"""The audit log: hash-chained records of decisions and endings, written ahead of the answer's end.

The words and errors that all of it shares stand here, so that the command line need not load more.
"""

from enum import StrEnum


class Fsync(StrEnum):
    """When records are forced to the disk, so that they outlive the machine and not only the process.

    ALWAYS: before they are acknowledged. INTERVAL: every so many seconds; what was acknowledged since may be
    lost with the machine. NEVER: when the system does it by itself.
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
    """A record could not be written: the disk is full, the file is gone, the log is closed or overrun."""


class AuditBrokenError(AuditError):
    """A log that no server may go on with: its records do not form one chain, or another server holds it."""


class AuditKeyError(AuditError):
    """A key file that cannot be read or is too short."""
