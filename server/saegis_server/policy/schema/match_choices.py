"""The choices about matches, by themselves, so that the command line need not load more."""

from enum import StrEnum


class Unmatched(StrEnum):
    """What is done with a policy that can match no model, tenant or role of the server."""

    REFUSE = "refuse"
    WARN = "warn"
