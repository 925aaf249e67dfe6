"""What can go wrong with the audit log."""


class AuditError(Exception):
    """Anything that is wrong with the audit log."""


class AuditUnavailableError(AuditError):
    """A record could not be written: the disk is full, the file is gone, the log is closed or overrun."""


class AuditBrokenError(AuditError):
    """A log that no server may go on with: its records do not form one chain, or another server holds it."""


class AuditKeyError(AuditError):
    """A key file that cannot be read or is too short."""
