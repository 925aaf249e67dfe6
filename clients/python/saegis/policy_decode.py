"""Reading answers about policies: messages of the contract become results of the clients."""

from collections.abc import Iterable
from datetime import UTC

from saegis import policy_results as results
from saegis.errors import InternalError
from saegis.v1 import policy_pb2 as pb


def policy(message: pb.GetPolicyResponse) -> results.Policy:
    """The result of `get_policy`."""
    return results.Policy(state(message.policy), message.bundle)


def policies(message: pb.ListPoliciesResponse) -> results.PolicyList:
    """The result of `list_policies`."""
    return results.PolicyList(tuple(map(state, message.policies)), message.policy_revision)


def revisions(message: pb.ListPolicyRevisionsResponse) -> tuple[results.PolicyRevision, ...]:
    """The result of `policy_revisions`."""
    return tuple(map(_revision, message.revisions))


def state(message: pb.PolicyState) -> results.PolicyState:
    """A policy as it is in force: the result of `put_policy` and `roll_back_policy`."""
    return results.PolicyState(
        active=_revision(message.active),
        shadow=_revision(message.shadow) if message.HasField("shadow") else None,
        etag=message.etag,
        description=message.description,
        rules=tuple(message.rules),
    )


def validation(message: pb.ValidatePolicyResponse) -> results.Validation:
    """The result of `validate_policy`."""
    return results.Validation(
        valid=message.valid,
        problems=_problems(message.problems),
        revision=_revision(message.revision) if message.HasField("revision") else None,
        cases=tuple(
            results.CaseOutcome(each.name, each.passed, tuple(each.failures)) for each in message.cases
        ),
        warnings=_problems(message.warnings),
        replaces=state(message.replaces) if message.HasField("replaces") else None,
        changes=tuple(map(_change, message.changes.changes)) if message.HasField("changes") else None,
    )


def _change(message: pb.PolicyChange) -> results.PolicyChange:
    try:
        kind = results.ChangeKind(pb.ChangeKind.Name(message.change).removeprefix("CHANGE_KIND_").lower())
    except ValueError as error:
        raise InternalError(
            f"unknown kind of a change: {message.change}", reason="CONTRACT_BROKEN"
        ) from error
    return results.PolicyChange(kind, message.key)


def _problems(messages: Iterable[pb.PolicyProblem]) -> tuple[results.PolicyProblem, ...]:
    return tuple(results.PolicyProblem(each.file, each.line, each.path, each.message) for each in messages)


def decision(message: pb.PolicyDecision) -> results.Decision:
    """The result of `evaluate_policy`."""
    return results.Decision(
        allowed=message.allowed,
        policy_revision=message.policy_revision,
        denials=tuple(
            results.Denial(each.policy, each.rule, each.field, each.message) for each in message.denials
        ),
        rules=applied_rules(message.rules),
        program_digest=message.program_digest,
    )


def applied_rules(messages: Iterable[pb.AppliedRule]) -> tuple[results.AppliedRule, ...]:
    """The rules of a decision or a receipt."""
    return tuple(
        results.AppliedRule(
            policy=each.policy,
            rule=each.rule,
            action=each.action,
            mode=_mode(each.mode),
            labels=tuple(each.labels),
            reason=each.reason,
            tokens=each.tokens,
            conditional=each.conditional,
        )
        for each in messages
    )


def _mode(value: pb.RuleMode) -> results.RuleMode:
    try:
        return results.RuleMode(pb.RuleMode.Name(value).removeprefix("RULE_MODE_").lower())
    except ValueError as error:
        raise InternalError(f"unknown mode of a rule: {value}", reason="CONTRACT_BROKEN") from error


def _revision(message: pb.PolicyRevision) -> results.PolicyRevision:
    return results.PolicyRevision(
        name=message.name,
        serial=message.serial,
        revision=message.revision,
        digest=message.digest,
        signed_by=message.signed_by,
        put_time=message.put_time.ToDatetime(tzinfo=UTC) if message.HasField("put_time") else None,
        put_by=message.put_by,
        active=message.active,
        shadow=message.shadow,
    )
