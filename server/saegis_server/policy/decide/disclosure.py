"""Disclosure: what a caller may learn of policies, by its tenant and role and each policy's transparency.

Only this module decides it; receipts, denials and PolicyService follow it.

- An administrator may learn everything about the policies of every tenant.
- Others know that a policy is in force if it concerns their tenant. If its transparency is `labels`, they
  also learn what it says and why it denies; if it is `steered`, they learn only that there are rules.
- A receipt says the same to everybody, since answers are passed on: what the transparency allows.
- Rules of a policy that conceals are not shown, whatever their mode, and neither are counts that include
  their effect: a request's own ban, for example, must not show whether the feature was banned already.
"""

from __future__ import annotations

from dataclasses import dataclass

from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial
from saegis_server.policy.schema.policy import EVERY, Mode, Policy, Transparency
from saegis_server.steering.site import Site

#: The message for any field that a policy which conceals its rules does not allow.
NOT_ALLOWED = "is not allowed"


@dataclass(frozen=True, slots=True)
class Audience:
    """Who learns of policies. administers: whether it has that role."""

    tenant: str
    administers: bool = False

    def knows_of(self, policy: Policy) -> bool:
        """Whether it may learn that the policy is in force."""
        return self.administers or EVERY in policy.match.tenants or self.tenant in policy.match.tenants

    def reads(self, policy: Policy) -> bool:
        """Whether it may learn what the policy says."""
        return self.administers or (self.knows_of(policy) and policy.transparency is Transparency.LABELS)

    def conceals(self, decision: Decision) -> bool:
        """Whether part of a decision is kept from it."""
        return bool(decision.concealed) and not self.administers

    def denials(self, decision: Decision) -> tuple[Denial, ...]:
        """Why a request may not run: first the denials that it may learn, then each other field not allowed.

        The latter follow the order of the request and name neither policy nor rule, so that a denial by a
        ban looks like any other.
        """
        if not self.conceals(decision):
            return decision.denials
        open_denials = tuple(denial for denial in decision.denials if not _is_concealed(denial, decision))
        fields = {denial.field for denial in decision.denials} - {denial.field for denial in open_denials}
        places = {edit.path: place for place, edit in enumerate(decision.asked)}
        ordered = sorted(fields, key=lambda field: (places.get(field, len(places)), field))
        return (*open_denials, *(Denial("", "", NOT_ALLOWED, field) for field in ordered))

    def rules(self, decision: Decision) -> tuple[AppliedRule, ...]:
        """The rules of a decision that it may learn."""
        return decision.rules if self.administers else _open(decision)


#: Whoever runs the server.
OPERATOR = Audience("", administers=True)


def _is_concealed(denial: Denial, decision: Decision) -> bool:
    return denial.shared or denial.policy in decision.concealed


def _open(decision: Decision) -> tuple[AppliedRule, ...]:
    return tuple(
        rule
        for rule in decision.rules
        if rule.transparency is Transparency.LABELS and rule.policy not in decision.concealed
    )


def disclosed_revisions(decision: Decision, audience: Audience) -> str:
    """ "name@revision" of each policy that decided and whose denials the audience may learn."""
    if not audience.conceals(decision):
        return decision.policy_revision
    names = decision.policy_revision.split(",")
    return ",".join(name for name in names if name.partition("@")[0] not in decision.concealed)


def receipt_rules(decision: Decision) -> tuple[AppliedRule, ...]:
    """The rules that a receipt shows."""
    return tuple(rule for rule in _open(decision) if rule.mode is not Mode.SHADOW)


def receipt_counts(decision: Decision) -> bool:
    """Whether a receipt shows the program's digest, and counts that include the effect of rules."""
    return not decision.concealed


def own_sites(decision: Decision) -> frozenset[Site]:
    """The sites that the request itself names: a receipt that conceals shows only these."""
    return frozenset(edit.site for edit in decision.asked)
