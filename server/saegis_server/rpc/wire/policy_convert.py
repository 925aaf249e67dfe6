"""Conversion: states, revisions, examinations and decisions of policies as messages of the contract."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from saegis.v1 import policy_pb2 as pb
from saegis_server.policy.decide import decision
from saegis_server.policy.decide.cases import CaseResult
from saegis_server.policy.decide.disclosure import Audience
from saegis_server.policy.schema.policy import Mode
from saegis_server.policy.store.history import Revision
from saegis_server.policy.store.in_force import PolicyState
from saegis_server.problem import Problem

_MODES = {
    Mode.ENFORCE: pb.RULE_MODE_ENFORCE,
    Mode.AUDIT: pb.RULE_MODE_AUDIT,
    Mode.SHADOW: pb.RULE_MODE_SHADOW,
}


def revision(found: Revision, state: PolicyState) -> pb.PolicyRevision:
    """A revision of a policy that stands as `state` says."""
    put_time = Timestamp()
    put_time.FromDatetime(found.put_time)
    return pb.PolicyRevision(
        name=found.name,
        serial=found.serial,
        revision=found.revision,
        digest=found.digest,
        signed_by=found.signed_by,
        put_time=put_time,
        put_by=found.put_by,
        active=found.digest == state.active.digest,
        shadow=state.shadow is not None and found.digest == state.shadow.digest,
    )


def state(found: PolicyState, reads: bool = True) -> pb.PolicyState:
    """A policy in force. reads: whether what it says may be told."""
    return pb.PolicyState(
        active=revision(found.active, found),
        shadow=revision(found.shadow, found) if found.shadow is not None else None,
        etag=found.etag,
        description=found.description if reads else "",
        rules=found.rules if reads else (),
    )


def problem(found: Problem) -> pb.PolicyProblem:
    """One thing that is wrong with a bundle."""
    return pb.PolicyProblem(file=found.file, line=found.line, path=found.path, message=found.message)


def changes(by_entry: Mapping[str, str]) -> pb.PolicyChanges:
    """What became of a policy's entries, by key: "added", "removed" or "changed"."""
    told = (pb.PolicyChange(change=f"CHANGE_KIND_{kind.upper()}", key=key) for key, kind in by_entry.items())
    return pb.PolicyChanges(changes=told)


def outcome(case: CaseResult) -> pb.CaseOutcome:
    """How a case went."""
    return pb.CaseOutcome(name=case.name, passed=case.passed, failures=case.failures)


def applied(rule: decision.AppliedRule, tokens: int = 0) -> pb.AppliedRule:
    """A rule that applies. tokens: at how many its condition held."""
    return pb.AppliedRule(
        policy=rule.policy,
        rule=rule.rule,
        action=rule.action,
        mode=_MODES[rule.mode],
        labels=rule.labels,
        reason=rule.reason,
        tokens=tokens,
        conditional=rule.conditional,
    )


def decided(found: decision.Decision, audience: Audience) -> pb.PolicyDecision:
    """A decision, as far as the audience may learn it."""
    return pb.PolicyDecision(
        allowed=found.allowed,
        policy_revision=found.policy_revision,
        denials=[
            pb.Denial(policy=each.policy, rule=each.rule, field=each.field, message=each.message)
            for each in audience.denials(found)
        ],
        rules=[applied(rule) for rule in audience.rules(found)],
        program_digest=found.digest if found.allowed and not audience.conceals(found) else "",
    )
