"""PolicyService: the policies in force, what they decide, and what is wrong with a bundle."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from saegis.base import BaseClient
from saegis.messages import result, steering_message, word
from saegis.rpc import rpc
from saegis.steering import Edit
from saegis.v1 import policy_pb2 as pb


class RuleMode(StrEnum):
    """What is done with a rule that applies."""

    ENFORCE = "enforce"
    AUDIT = "audit"
    """It is recorded, and does not act."""
    SHADOW = "shadow"
    """It is counted beside the rules in force, and does not act."""


@dataclass(frozen=True, slots=True)
class PhaseTokens:
    """How many tokens, by where they stand."""

    prompt: int
    """Tokens of the prompt, counted once however many completions there are."""
    completion: int
    """Tokens of all completions, those among them that the request gave."""

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class TargetTokens:
    """A feature or direction at its site, and tokens at which something was the case with it."""

    site: str
    sae: str
    """The feature's SAE; empty for a direction."""
    index: int | None
    """The feature's index; None for a direction."""
    label: str
    """The feature's label; empty if it has none."""
    direction: str
    """The digest of a direction; empty for a feature."""
    tokens: PhaseTokens | None
    """None if they were not counted."""
    direction_name: str = ""
    """The name by which the request referred to a direction; empty where it gave its digest or numbers."""


@dataclass(frozen=True, slots=True)
class AppliedRule:
    """One of the operator's rules that applies to a request, and what it did."""

    policy: str
    rule: str
    action: str
    """What it does: "ban", "clamp", "cap", "floor", "scale", "watch", "stop", "refuse", "record" or
    "limit"."""
    mode: RuleMode
    labels: tuple[str, ...]
    """The labels of its features; empty if the policy does not show them."""
    reason: str
    """The author's reason."""
    tokens: int
    """Tokens at which its condition held; 0 if it has none or nothing was generated."""
    conditional: bool
    acted: PhaseTokens | None = None
    """Tokens on which it acted: it asked for a change of a feature, or found a banned one active. None if it
    changes no activation or is only recorded, and if a policy conceals its rules. Rules of the same feature
    are joined, and each of them has done what they did together, at the tokens of its own phase."""
    targets: tuple[TargetTokens, ...] = ()
    """The same for each feature or direction that it changes."""
    held: PhaseTokens | None = None
    """Tokens at which its condition held; in the prompt it is judged at the last one."""
    first_held: int | None = None
    """The completion's token at which its condition first held, counted from 0; -1 for the prompt, None if
    it never held."""
    stopped: int = 0
    """Completions that it ended."""
    readings: tuple[TargetTokens, ...] = ()
    """Each feature or direction that its condition reads, and tokens at which it was active."""

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
    """The id of the key that signed it; empty if the server requires no signature."""
    put_time: datetime | None
    """When it was put in force, in UTC; None for a bundle that was only validated."""
    put_by: str
    """A principal, or "start" for the server's own configuration."""
    active: bool
    """Whether it is in force."""
    shadow: bool
    """Whether it is evaluated beside the revision in force, without acting."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy as it is in force."""

    active: PolicyRevision
    shadow: PolicyRevision | None
    """The candidate that is evaluated beside it."""
    etag: str
    """Changes with every put and roll back; an argument of `put_policy` and `roll_back_policy`."""
    description: str
    rules: tuple[str, ...]
    """The ids of its rules."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The answer to `get_policy`."""

    policy: PolicyState
    bundle: bytes
    """The bundle as a tar archive; empty if it was not asked for."""


@dataclass(frozen=True, slots=True)
class PolicyList:
    """The answer to `list_policies`."""

    policies: tuple[PolicyState, ...]
    """The policies in force, ordered by name."""
    policy_revision: str
    """The name of all of them together, as in receipts."""


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One thing that is wrong with a bundle."""

    file: str
    """The file in the bundle; empty if the problem is not in one file."""
    line: int
    """The line, from 1; 0 if it is not in one line."""
    path: str
    """The key, such as "rules[2].ban.strength", or the rule."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.path, self.message) if part)


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The result of one of a bundle's own cases."""

    name: str
    passed: bool
    failures: tuple[str, ...]


class ChangeKind(StrEnum):
    """How an entry of a policy changed."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class PolicyChange:
    """One entry or key of a policy that has changed."""

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
    """The revision that the bundle holds; None if it cannot be read."""
    cases: tuple[CaseOutcome, ...]
    warnings: tuple[PolicyProblem, ...] = ()
    """What does not prevent the put but is probably a mistake."""
    replaces: PolicyState | None = None
    """The policy of this name that is in force."""
    changes: tuple[PolicyChange, ...] | None = None
    """What the bundle changes in that policy; None if it cannot be read or the caller may not know."""


@dataclass(frozen=True, slots=True)
class Denial:
    """One reason why a request may not run; policy and rule are empty if they are concealed."""

    policy: str
    rule: str
    """The rule, allowance, limit or protection."""
    field: str
    """The field of the request, such as "steering.edits[2]"; empty for the request as a whole."""
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies decide on a request: the answer to `evaluate_policy`."""

    allowed: bool
    policy_revision: str
    """The name of the policies that decided, as in receipts."""
    denials: tuple[Denial, ...]
    rules: tuple[AppliedRule, ...]
    """The rules that apply to it, those included that are only recorded."""
    program_digest: str
    """The digest of the steering that it would get; empty if it is denied or a policy conceals its rules."""


def _policy(message: pb.GetPolicyResponse) -> Policy:
    return result(Policy, message, policy=_state(message.policy))


def _policies(message: pb.ListPoliciesResponse) -> PolicyList:
    return result(PolicyList, message, policies=tuple(map(_state, message.policies)))


def _revisions(message: pb.ListPolicyRevisionsResponse) -> tuple[PolicyRevision, ...]:
    return tuple(map(_revision, message.revisions))


def _revision(message: pb.PolicyRevision) -> PolicyRevision:
    put_time = message.put_time.ToDatetime(tzinfo=UTC) if message.HasField("put_time") else None
    return result(PolicyRevision, message, put_time=put_time)


def _put(message: pb.PutPolicyResponse | pb.RollBackPolicyResponse) -> PolicyState:
    return _state(message.policy)


def _state(message: pb.PolicyState) -> PolicyState:
    shadow = _revision(message.shadow) if message.HasField("shadow") else None
    return result(PolicyState, message, active=_revision(message.active), shadow=shadow)


def _validation(message: pb.ValidatePolicyResponse) -> Validation:
    items = message.changes.changes
    changes = tuple(result(PolicyChange, item, change=word(ChangeKind, item, "change")) for item in items)
    return result(
        Validation,
        message,
        problems=_problems(message.problems),
        revision=_revision(message.revision) if message.HasField("revision") else None,
        cases=tuple(result(CaseOutcome, case) for case in message.cases),
        warnings=_problems(message.warnings),
        replaces=_state(message.replaces) if message.HasField("replaces") else None,
        changes=changes if message.HasField("changes") else None,
    )


def _problems(messages: Iterable[pb.PolicyProblem]) -> tuple[PolicyProblem, ...]:
    return tuple(result(PolicyProblem, message) for message in messages)


def _decision(message: pb.EvaluatePolicyResponse) -> Decision:
    decision = message.decision
    denials = tuple(result(Denial, denial) for denial in decision.denials)
    return result(Decision, decision, denials=denials, rules=applied_rules(decision.rules))


def applied_rules(messages: Iterable[pb.AppliedRule]) -> tuple[AppliedRule, ...]:
    """The rules of a decision or a receipt."""
    return tuple(
        result(
            AppliedRule,
            message,
            mode=word(RuleMode, message, "mode"),
            acted=_phase_tokens(message, "acted"),
            held=_phase_tokens(message, "held"),
            targets=tuple(map(target_tokens, message.targets)),
            readings=tuple(map(target_tokens, message.readings)),
        )
        for message in messages
    )


def target_tokens(message: pb.TargetTokens) -> TargetTokens:
    """A feature or direction with what was counted of it."""
    return result(TargetTokens, message, tokens=_phase_tokens(message, "tokens"))


def _phase_tokens(message: pb.AppliedRule | pb.TargetTokens, name: str) -> PhaseTokens | None:
    # mypy knows which fields each of the two has, but not that `name` is one of them.
    counted: Any = message
    return result(PhaseTokens, getattr(counted, name)) if counted.HasField(name) else None


class PolicyMethods(BaseClient):
    """The methods of both clients that call PolicyService."""

    @rpc(lambda stubs: stubs.policy.ListPolicies, _policies)
    def list_policies(self, *, timeout: float | None = None) -> pb.ListPoliciesRequest:
        """Return all policies in force."""
        return pb.ListPoliciesRequest()

    @rpc(lambda stubs: stubs.policy.GetPolicy, _policy)
    def get_policy(
        self, name: str, *, include_bundle: bool = False, timeout: float | None = None
    ) -> pb.GetPolicyRequest:
        """Return one policy in force and, if asked for, its bundle."""
        return pb.GetPolicyRequest(name=name, include_bundle=include_bundle)

    @rpc(lambda stubs: stubs.policy.ListPolicyRevisions, _revisions)
    def policy_revisions(self, name: str, *, timeout: float | None = None) -> pb.ListPolicyRevisionsRequest:
        """Return the revisions that a policy had, newest first."""
        return pb.ListPolicyRevisionsRequest(name=name)

    @rpc(lambda stubs: stubs.policy.ValidatePolicy, _validation)
    def validate_policy(self, bundle: bytes, *, timeout: float | None = None) -> pb.ValidatePolicyRequest:
        """Check a bundle, a tar archive, as `put_policy` would. Changes nothing."""
        return pb.ValidatePolicyRequest(bundle=bundle)

    @rpc(lambda stubs: stubs.policy.EvaluatePolicy, _decision)
    def evaluate_policy(
        self,
        steering: Sequence[Edit] = (),
        *,
        tenant: str = "",
        roles: Sequence[str] = (),
        bundle: bytes = b"",
        uses: Mapping[str, float | None] = MappingProxyType({}),
        timeout: float | None = None,
    ) -> pb.EvaluatePolicyRequest:
        """Return what would be decided on a request, by the policies in force or by a bundle.

        tenant, roles: who would send it; by default the caller. uses: what it would use beyond the ordinary,
        by its word in policies, with the value of "n" and "temperature" and None for others.
        """
        if isinstance(roles, str):
            raise TypeError(f"roles: expected several, not the single string {roles!r}")
        request = pb.EvaluatePolicyRequest(tenant=tenant, roles=roles, bundle=bundle)
        for use, value in uses.items():
            request.uses.add(word=use, value=value)
        if steering:
            request.steering.CopyFrom(steering_message(steering))
        return request

    @rpc(lambda stubs: stubs.policy.PutPolicy, _put)
    def put_policy(
        self, bundle: bytes, *, etag: str = "", shadow: bool = False, timeout: float | None = None
    ) -> pb.PutPolicyRequest:
        """Put a bundle, a tar archive, in force or, as a `shadow`, beside the revision in force.

        etag: the etag, from `get_policy`, of the policy that it replaces; empty for a new policy.
        """
        return pb.PutPolicyRequest(bundle=bundle, etag=etag, shadow=shadow)

    @rpc(lambda stubs: stubs.policy.RollBackPolicy, _put)
    def roll_back_policy(
        self, name: str, digest: str, *, etag: str, timeout: float | None = None
    ) -> pb.RollBackPolicyRequest:
        """Put an earlier revision in force again. digest: at least its first 8 digits."""
        return pb.RollBackPolicyRequest(name=name, digest=digest, etag=etag)
