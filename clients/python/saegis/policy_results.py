"""What asking about policies returns: those in force, what they decide, and what is wrong with a bundle."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class RuleMode(StrEnum):
    """What is done with a rule that applies."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    """It is recorded, and does not act."""
    SHADOW = "shadow"
    """It is counted beside the rules in force, and does not act."""


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """A rule of the operator's that applies to a request, and what it did."""

    policy: str
    rule: str
    action: str
    """What it does: "ban", "clamp", "cap", "floor", "scale", "watch", "stop", "refuse", "record" or
    "limit"."""
    mode: RuleMode
    labels: tuple[str, ...]
    """The labels of the features it is about; empty where the policy does not tell them."""
    reason: str
    """The author's reason."""
    tokens: int
    """Tokens at which its condition held; 0 where it has none or nothing was generated."""
    conditional: bool

    @property
    def name(self) -> str:
        """ "policy/rule"."""
        return f"{self.policy}/{self.rule}"


@dataclass(frozen=True, slots=True)
class PolicyRevision:
    """One revision of a policy."""

    name: str
    serial: int
    """Rises with every revision."""
    revision: str
    """The author's name for it."""
    digest: str
    """SHA-256 over the digests of the bundle's files, in hexadecimal."""
    signed_by: str
    """The id of the key that signed it; empty where the server asks for no signature."""
    put_time: datetime | None
    """When it was put in force, in UTC; None for a bundle that was only validated."""
    put_by: str
    """A principal, or "start" for the server's own configuration."""
    active: bool
    """Whether it is in force."""
    shadow: bool
    """Whether it is evaluated beside the one in force, without acting."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as it is in force."""

    active: PolicyRevision
    shadow: PolicyRevision | None
    """The candidate that is evaluated beside it."""
    etag: str
    """Changes with every put and roll back; `put_policy` and `roll_back_policy` take it."""
    description: str
    rules: tuple[str, ...]
    """The ids of its rules."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The answer to `get_policy`."""

    policy: PolicyState
    bundle: bytes
    """The bundle as a tar archive; empty where it was not asked for."""


@dataclass(frozen=True, slots=True)
class PolicyList:
    """The answer to `list_policies`."""

    policies: tuple[PolicyState, ...]
    """Those in force, by name."""
    policy_revision: str
    """Names all of them together, as receipts do."""


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One thing that is wrong with a bundle."""

    file: str
    """The file in the bundle; empty where the problem is not in one file."""
    line: int
    """The line, from 1; 0 where it is not in one line."""
    path: str
    """The key, such as "rules[2].ban.strength", or the rule."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """How one of a bundle's own cases went."""

    name: str
    passed: bool
    failures: tuple[str, ...]


class ChangeKind(StrEnum):
    """What became of an entry of a policy."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One entry or key of a policy that is otherwise than before."""

    change: ChangeKind
    key: str
    """Such as "rules.no-poison" or "mode"."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The answer to `validate_policy`."""

    valid: bool
    """Whether `put_policy` would take the bundle."""
    problems: tuple[PolicyProblem, ...]
    revision: PolicyRevision | None
    """What the bundle is; None where it cannot be read."""
    cases: tuple[CaseOutcome, ...]
    warnings: tuple[PolicyProblem, ...] = ()
    """What keeps nobody from taking it, and is hardly meant."""
    replaces: PolicyState | None = None
    """The policy of this name that is in force."""
    changes: tuple[PolicyChange, ...] | None = None
    """What the bundle says otherwise than that; None where it cannot be read, or the caller may not know."""


@dataclass(frozen=True, slots=True)
class Denial:
    """One reason for which a request may not run; policy and rule are empty where they are concealed."""

    policy: str
    rule: str
    """The rule, allowance, limit or protection."""
    field: str
    """The field of the request, such as "steering.edits[2]"; empty where it is the request as a whole."""
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies decide on a request: the answer to `evaluate_policy`."""

    allowed: bool
    policy_revision: str
    """Names the policies that decided, as receipts do."""
    denials: tuple[Denial, ...]
    rules: tuple[AppliedRule, ...]
    """The rules in force for it, and those that are only recorded."""
    program_digest: str
    """Names the steering that it would get; empty where it may not run, or a policy conceals its rules."""
