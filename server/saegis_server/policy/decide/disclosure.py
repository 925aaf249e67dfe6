"""Disclosure: what a caller may learn of the policies, by its tenant and role and by what each policy tells.

This is the one place that says so; receipts, denials and PolicyService tell what it lets them.

- Who administers may learn everything, of every tenant's policies.
- Others know that a policy is in force if it concerns their tenant. What it says, and why it denies, they
  learn where its transparency is `labels`; where it is `steered` they learn that there are rules, no more.
- A receipt tells everybody the same, since an answer is shown on: what the transparency allows.
- Rules of a policy that conceals are not told, whatever their mode, and neither are counts that include
  their effect: a request's own ban, say, must not show whether the feature was banned already.
"""

from __future__ import annotations

from dataclasses import dataclass

from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial
from saegis_server.policy.schema.policy import EVERY, Mode, Policy, Transparency
from saegis_server.steering.site import Site

#: What is said of a field that a policy which conceals its rules does not allow, whatever the reason.
NOT_ALLOWED = "is not allowed"


@dataclass(frozen=True, slots=True)
class Audience:
    """Who is told. administers: whether it has that role."""

    tenant: str
    administers: bool = False

    def knows_of(self, policy: Policy) -> bool:
        """Whether it may learn that the policy is in force."""
        return self.administers or EVERY in policy.match.tenants or self.tenant in policy.match.tenants

    def reads(self, policy: Policy) -> bool:
        """Whether it may learn what the policy says."""
        return self.administers or (self.knows_of(policy) and policy.transparency is Transparency.LABELS)

    def conceals(self, decision: Decision) -> bool:
        """Whether something of a decision is kept from it."""
        return bool(decision.concealed) and not self.administers

    def denials(self, decision: Decision) -> tuple[Denial, ...]:
        """Why a request may not run: first what it may learn, then each further field that is not allowed.

        The latter stand in the order of the request and name neither policy nor rule, so that a denial by a
        ban looks like any other.
        """
        if not self.conceals(decision):
            return decision.denials
        told = tuple(each for each in decision.denials if not _is_concealed(each, decision))
        fields = {each.field for each in decision.denials} - {each.field for each in told}
        places = {edit.path: place for place, edit in enumerate(decision.asked)}
        ordered = sorted(fields, key=lambda field: (places.get(field, len(places)), field))
        return (*told, *(Denial("", "", NOT_ALLOWED, field) for field in ordered))

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


def revisions_told(decision: Decision, audience: Audience) -> str:
    """Of the policies that decided, "name@revision" of those whose denials the audience may learn."""
    if not audience.conceals(decision):
        return decision.policy_revision
    names = decision.policy_revision.split(",")
    return ",".join(each for each in names if each.partition("@")[0] not in decision.concealed)


def receipt_rules(decision: Decision) -> tuple[AppliedRule, ...]:
    """The rules that a receipt tells."""
    return tuple(rule for rule in _open(decision) if rule.mode is not Mode.SHADOW)


def receipt_counts(decision: Decision) -> bool:
    """Whether a receipt tells the counts in which the rules have a part, and the program's digest."""
    return not decision.concealed


def own_sites(decision: Decision) -> frozenset[Site]:
    """The sites that the request itself names: a receipt that conceals tells of these."""
    return frozenset(edit.site for edit in decision.asked)
