"""Attribution: what each rule did to a request, from its decision and from what the engine counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from saegis_server.engine.api import Closing, Guard, RefusedByPolicyError, RequestFailed, rows_of
from saegis_server.engine.counts import Acted, RowGroup, RowName
from saegis_server.engine.receipts import Receipt
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import AppliedRule, Decision, Denial
from saegis_server.policy.schema.policy import Mode
from saegis_server.rpc.auth.watch_set import WatchSet
from saegis_server.steering.program import SteeringProgram
from saegis_server.telemetry.features import FeatureName
from saegis_server.telemetry.rules import RuleEffect, RuleName

#: What happens to a feature, edited or banned, and the feature.
FeatureRows = tuple[str, FeatureName]
#: The mode of a rule that is evaluated beside the revision in force.
_CANDIDATE = "candidate"


def rule_name(rule: AppliedRule) -> RuleName:
    """A rule as series name it."""
    mode = _CANDIDATE if rule.candidate else rule.mode.value
    return RuleName(rule.policy, rule.rule, mode, rule.action)


def rules_of(policies: PolicySet) -> dict[RuleName, bool]:
    """All rules of policies and candidates, and whether each has a condition."""
    standing = [rule for policy in policies.policies for rule in policy.standing()]
    standing += [rule for policy in policies.candidates for rule in policy.standing(candidate=True)]
    applied = [rule.applied() for rule in standing]
    return {rule_name(rule): rule.conditional for rule in applied}


def feature_rows(
    program: SteeringProgram, guard: Guard, watch: WatchSet | None
) -> dict[FeatureRows, RowGroup]:
    """The rows that edit and that ban each feature of a request, as series name the feature."""
    rows: dict[FeatureRows, set[RowName]] = {}
    for row, _ in rows_of(program, guard):
        name = None if watch is None else watch.name(row.site, row.key)
        if name is not None:
            event = "banned" if row.stage == "bans" else "edited"
            rows.setdefault((event, name), set()).add(row)
    return {feature: frozenset(names) for feature, names in rows.items()}


def denials_of(denials: Iterable[Denial]) -> set[RuleName]:
    """What denied a request, each once."""
    return {RuleName(denial.policy, denial.rule, denial.mode.value) for denial in denials}


def effects(
    decision: Decision, acted: Mapping[RowGroup, Acted], closing: Closing
) -> Iterator[tuple[RuleName, RuleEffect]]:
    """What each rule that applies did to a request that the engine had. acted: of groups of rows."""
    done = closing.done if isinstance(closing, RequestFailed) else closing
    refused = _refused_by(closing)
    for rule in decision.rules:
        rows = decision.rule_rows.get((rule.policy, rule.rule)) if rule.mode is Mode.ENFORCE else None
        own = Acted(0, 0) if rows is None else acted.get(rows, Acted(0, 0))
        # Its rows may be those of other rules too, which act at other tokens.
        yield rule_name(rule), _effect(rule.name, own.within(rule.phase), done.receipt, refused)


def _effect(name: str, acted: Acted, receipt: Receipt, refused: str) -> RuleEffect:
    condition = next((each for each in receipt.conditions if each.name == name), None)
    return RuleEffect(
        prompt=acted.prompt,
        answer=acted.answer,
        held=name == refused or (condition is not None and condition.first_token is not None),
        stopped=0 if condition is None else condition.stopped,
        refused=name == refused,
    )


def _refused_by(closing: Closing) -> str:
    """The name of the rule that refused a request; empty if none did."""
    if isinstance(closing, RequestFailed) and isinstance(closing.error, RefusedByPolicyError):
        return closing.error.name
    return ""
