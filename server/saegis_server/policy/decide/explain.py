"""Explanations: a decision in words, line by line."""

from __future__ import annotations

from collections.abc import Iterator

from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial
from saegis_server.policy.schema.policy import Mode

_MODES = {
    Mode.ENFORCE: "in force",
    Mode.AUDIT: "recorded only (audit)",
    Mode.SHADOW: "recorded only (shadow)",
}


def explain(decision: Decision, program_digest: str = "") -> list[str]:
    """Who decided, why it is denied or which rules act, and what would be denied by rules that do not act.

    For the operator: it tells reasons and labels whatever a policy lets others know. program_digest: of the
    program where the decision does not hold it, as of one that a server told.
    """
    return list(_lines(decision, program_digest or decision.digest))


def _lines(decision: Decision, program_digest: str) -> Iterator[str]:
    outcome = "allowed" if decision.allowed else "denied"
    if decision.policy_revision:
        yield f"{outcome} under {decision.policy_revision.replace(',', ', ')}"
    else:
        yield f"{outcome}: no policy matches"
    for denial in decision.denials:
        yield f"  denied by {_denial(denial)}"
    for rule in decision.rules:
        yield f"  {_rule(rule)}"
    for denial in decision.would_deny:
        yield f"  would be denied by {_denial(denial)}"
    for site, program in decision.program.sites.items():
        counts = {
            "own edits": len(program.edits),
            "rules": len(program.rules),
            "bans": len(program.bans),
            "readings": len(program.guards),
        }
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        bound = program.max_relative_norm
        moved = "" if bound is None else f"; own edits move a token by at most {bound:g} of its norm"
        yield f"  at {site}: {told}{moved}"
    if decision.guard.hold_back:
        yield "  text is told only once its tokens have been judged"
    if decision.guard.reads_first_token:
        yield "  conditions read the first token too"
    if decision.program.moves_first_token:
        yield "  rows move the first token too"
    if decision.allowed:
        yield f"  program {program_digest[:16]}"


def _denial(denial: Denial) -> str:
    name = f"{denial.policy}/{denial.rule}" if denial.policy else denial.rule
    return f"{name}{f' at {denial.field}' if denial.field else ''}: {denial.message}"


def _rule(rule: AppliedRule) -> str:
    when = ", when its condition holds" if rule.conditional else ""
    labels = f" of {', '.join(rule.labels)}" if rule.labels else ""
    reason = f": {rule.reason}" if rule.reason else ""
    return f"{rule.name}: {rule.action}{labels}, {_MODES[rule.mode]}{when}{reason}"
