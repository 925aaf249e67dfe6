"""The words of the audit log that the command line knows, by themselves, so that it need not load more."""

from enum import StrEnum


class RecordKind(StrEnum):
    """What a record is about; `audit_record` has a dataclass for each."""

    START = "start"
    STOP = "stop"
    REPAIR = "repair"
    LOST = "lost"
    DELETION = "deletion"
    DECISION = "decision"
    ANSWER = "answer"
    REFUSAL = "refusal"
    POLICY = "policy"
    IDENTITY = "identity"


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
