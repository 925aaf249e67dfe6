"""Explanations: a policy decision in words, line by line, made by a server or offline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from saegis.policies import RuleMode

_MODES: dict[str, str] = {
    RuleMode.ENFORCE: "in force",
    RuleMode.AUDIT: "recorded only (audit)",
    RuleMode.SHADOW: "recorded only (shadow)",
}


class ExplainedDenial(Protocol):
    """One reason why a request may not run; the names are empty if they are concealed."""

    @property
    def policy(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def field(self) -> str: ...


class ExplainedRule(Protocol):
    """A rule that applies, and what it does; its mode is one of `RuleMode`."""

    @property
    def policy(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def reason(self) -> str: ...
    @property
    def conditional(self) -> bool: ...


class Explained(Protocol):
    """A decision: a server's answer, or an object of the server's own code."""

    @property
    def allowed(self) -> bool: ...
    @property
    def policy_revision(self) -> str: ...
    @property
    def denials(self) -> Sequence[ExplainedDenial]: ...
    @property
    def rules(self) -> Sequence[ExplainedRule]: ...


def explanation(decision: Explained, program_digest: str, further: Iterable[str] = ()) -> list[str]:
    """The policies that decided, the denials, the rules that act, and the program if the request is allowed.

    further: additional lines.
    """
    return list(_lines(decision, program_digest, further))


def _lines(decision: Explained, program_digest: str, further: Iterable[str]) -> Iterator[str]:
    outcome = "allowed" if decision.allowed else "denied"
    if decision.policy_revision:
        yield f"{outcome} under {decision.policy_revision.replace(',', ', ')}"
    else:
        yield f"{outcome}: no policy matches"
    for denial in decision.denials:
        yield f"  denied by {denial_line(denial)}"
    for rule in decision.rules:
        yield f"  {_rule(rule)}"
    yield from further
    if decision.allowed:
        yield f"  program {program_digest[:16]}"


def denial_line(denial: ExplainedDenial) -> str:
    """Which rule denies, at which field, and why."""
    name = f"{denial.policy}/{denial.rule}" if denial.policy else denial.rule
    return f"{name}{f' at {denial.field}' if denial.field else ''}: {denial.message}"


def _rule(rule: ExplainedRule) -> str:
    when = ", when its condition holds" if rule.conditional else ""
    labels = f" of {', '.join(rule.labels)}" if rule.labels else ""
    reason = f": {rule.reason}" if rule.reason else ""
    return f"{rule.name}: {rule.action}{labels}, {_MODES[rule.mode]}{when}{reason}"
