"""The errors of policies: one class for each kind of fault, with all problems of that kind."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from saegis_server.problem import Problem


class PolicyError(ValueError):
    """A policy that cannot be taken. `problems` holds all that were found, at least one.

    kind: what failed, as metrics and logs name it, such as "schema" or "signature".
    """

    kind = "policy"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class BundleError(PolicyError):
    """A bundle whose files cannot be read: no archive, no policy.yaml, an unknown file, too large."""

    kind = "bundle"


class SyntaxProblem(BundleError):
    """A file that is no YAML, or that has a key twice."""

    kind = "syntax"


class SchemaError(BundleError):
    """A file whose keys or values do not fit the schema."""

    kind = "schema"


class SignatureError(PolicyError):
    """A bundle that is not signed by a key that the operator trusts, or that was changed afterwards."""

    kind = "signature"


class KeyFileError(PolicyError):
    """A key file that holds no key of the right kind, or that would be overwritten."""

    kind = "key"


class SerialError(PolicyError):
    """A bundle whose serial is lower than one taken before, or the same with other content."""

    kind = "serial"


class CompileError(PolicyError):
    """A policy that does not fit what is served: an unknown feature, SAE or site, too many rows."""

    kind = "compile"


class Unmatched(StrEnum):
    """What is done with a policy that can match no model, tenant or role of the server."""

    REFUSE = "refuse"
    WARN = "warn"


class UnmatchedError(PolicyError):
    """A policy that can match no model, tenant or role of this server, or names one that looks alike."""

    kind = "unmatched"


class ConflictError(PolicyError):
    """A policy whose rules cannot hold together with those of another one in force."""

    kind = "conflict"


class CasesError(PolicyError):
    """A bundle whose own cases do not come out as they expect."""

    kind = "cases"


class HistoryError(Exception):
    """The history of policies cannot be read or written. The message says which file, and what to do."""


class StaleEtagError(Exception):
    """The policy is not what the etag stands for: it has changed, is new, or is not there yet."""

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
    """The policy never had a revision whose digest begins like this, or had several."""

    def __init__(self, name: str, digest: str, description: str) -> None:
        super().__init__(description)
        self.name = name
        self.digest = digest

    def __str__(self) -> str:
        return str(self.args[0])
