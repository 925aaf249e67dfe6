"""What can go wrong with the store of policies itself, rather than with a bundle."""

from __future__ import annotations


class HistoryError(Exception):
    """The history cannot be read or written; the message says which file and what to do."""


class StaleEtagError(Exception):
    """The policy is not as its changer saw it: it has changed, came to be, or is not there yet."""

    def __init__(self, name: str, etag: str) -> None:
        now = f"its etag is {etag!r} now" if etag else "it is not in force, so its etag is empty"
        super().__init__(f"the policy {name!r} is not what the etag stands for; {now}: read it again")
        self.name = name


class UnknownPolicyError(LookupError):
    """No policy of this name is in force."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no policy {name!r} is in force; those that are: {', '.join(known) or 'none'}")
        self.name = name

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownRevisionError(LookupError):
    """A policy never had a revision of this digest, or had several that begin so."""

    def __init__(self, name: str, digest: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self.digest = digest

    def __str__(self) -> str:
        return str(self.args[0])
