"""Cases: a bundle's own test requests, decided and played through, and the rules that they reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from saegis_server.engine.api import Guarded, Reaction
from saegis_server.policy.decide.authority import Fit
from saegis_server.policy.decide.case_request import Readings, facts_of, readings_of_case
from saegis_server.policy.decide.claims import Place
from saegis_server.policy.decide.compiled import CompiledPolicy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision, Denial, RequestFacts
from saegis_server.policy.decide.selectors import SelectionError
from saegis_server.policy.schema.cases import Case, Expectation
from saegis_server.policy.schema.policy import Mode
from saegis_server.steering.evaluator import TextConditions


@dataclass(frozen=True, slots=True)
class Played:
    """What comes of a case.

    fires: the rules whose condition came to hold. stopped_at: how many tokens of the answer are sent before
    a rule stops it; None if none does. refusal: by a condition over the prompt.
    """

    decision: Decision
    fires: frozenset[str] = frozenset()
    stopped_at: int | None = None
    refusal: Denial | None = None

    @property
    def outcome(self) -> str:
        """ "allow", "deny" or "no_policy", as cases expect it."""
        if any(denial.rule == "match" and not denial.policy for denial in self.decision.denials):
            return "no_policy"
        return "allow" if self.decision.allowed and self.refusal is None else "deny"

    @property
    def denials(self) -> tuple[Denial, ...]:
        """Why the request may not run."""
        return self.decision.denials if self.refusal is None else (self.refusal,)

    @property
    def rules(self) -> frozenset[str]:
        """The rules that decided the case: those that deny it or, if it may run, those in force."""
        if self.outcome == "allow":
            return frozenset(rule.rule for rule in self.decision.rules if rule.mode is Mode.ENFORCE)
        return frozenset(denial.rule for denial in self.denials)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How a case went. failures: in words, what differed from what it expects.

    reached: the rules, allowances and protections on which its outcome rests: those that denied or would
    deny, whose condition came to hold, that covered an edit, or that it expects to be in force.
    """

    name: str
    failures: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()

    @property
    def passed(self) -> bool:
        """Whether everything that it expects came."""
        return not self.failures


def run_cases(compiled: CompiledPolicy) -> tuple[CaseResult, ...]:
    """How the policy's own cases go, in the order of the bundle."""
    alone = PolicySet((compiled,))
    return tuple(_run(case, compiled, alone) for case in compiled.cases)


def coverage(compiled: CompiledPolicy, results: Sequence[CaseResult]) -> Mapping[str, bool]:
    """By id: whether any case reaches that rule, allowance or protection."""
    reached = frozenset[str]().union(*(result.reached for result in results))
    protections = (protection.id for protection in compiled.protections.protections)
    ids = [*compiled.rules, *(allowance.id for allowance in compiled.allowances), *protections]
    return {id_: id_ in reached for id_ in sorted(ids)}


def _run(case: Case, compiled: CompiledPolicy, alone: PolicySet) -> CaseResult:
    try:
        facts = facts_of(case.request, compiled)
        readings = readings_of_case(case.request, compiled)
    except SelectionError as error:
        return CaseResult(case.name, tuple(map(str, error.problems)))
    played = play(alone.decide(facts), readings, compiled)
    failures = tuple(_failures(case.expect, played))
    return CaseResult(case.name, failures, _reached(case.expect, played, facts, compiled))


def play(decision: Decision, readings: Readings, compiled: CompiledPolicy) -> Played:
    """A decision played through over readings, token by token, as the engine judges them."""
    conditions = decision.guard.conditions
    if not decision.allowed or not conditions:
        return Played(decision)
    places = _places(decision, compiled)
    values = [[readings.at_prompt(place, token) for place in places] for token in range(readings.prompt)]
    values += [[readings.at_answer(place, token) for place in places] for token in range(readings.answer)]
    text = TextConditions(tuple(guarded.condition for guarded in conditions), len(places))
    holds = text.read(torch.tensor(values, dtype=torch.float64), readings.prompt)
    fires = set[str]()
    for tokens, truths in enumerate(holds[readings.prompt - 1 :].tolist()):
        holding = [guarded for guarded, truth in zip(conditions, truths, strict=True) if truth]
        fires.update(_rule(guarded) for guarded in holding)
        refusing = next((guarded for guarded in holding if guarded.reaction is Reaction.REFUSE), None)
        if refusing is not None:
            refusal = Denial(compiled.name, _rule(refusing), refusing.message)
            return Played(decision, frozenset(fires), refusal=refusal)
        if any(guarded.reaction is Reaction.STOP for guarded in holding):
            return Played(decision, frozenset(fires), stopped_at=tokens)
    return Played(decision, frozenset(fires))


def _places(decision: Decision, compiled: CompiledPolicy) -> list[Place]:
    """The place of each reading of the guard, in the order of the forward pass."""
    sites = decision.program.sites
    return [
        (site, probe.key) for site in compiled.world.sites if site in sites for probe in sites[site].guards
    ]


def _rule(guarded: Guarded) -> str:
    return guarded.name.partition("/")[2]


def _failures(expect: Expectation, played: Played) -> Iterator[str]:
    if played.outcome != expect.decision:
        why = "; ".join(f"{denial.rule}: {denial.message}" for denial in played.denials)
        yield f"decision: expected {expect.decision}, came {played.outcome}{f' ({why})' if why else ''}"
    if expect.rules is not None:
        missing = sorted(set(expect.rules) - played.rules)
        if missing or (not expect.rules and played.rules):
            expected = ", ".join(missing) or "none"
            yield f"rules: expected {expected}, came {_listed(played.rules)}"
    if expect.fires is not None and set(expect.fires) != played.fires:
        yield f"fires: expected {_listed(expect.fires)}, came {_listed(played.fires)}"
    if expect.stopped_at is not None and expect.stopped_at != played.stopped_at:
        came = "it is not stopped" if played.stopped_at is None else f"it is stopped at {played.stopped_at}"
        yield f"stopped_at: expected {expect.stopped_at}, but {came}"
    if expect.message is not None and not any(expect.message in denial.message for denial in played.denials):
        came = "; ".join(denial.message for denial in played.denials) or "no message"
        yield f"message: expected {expect.message!r}, came {came!r}"


def _listed(ids: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(ids)) or "none"


def _reached(
    expect: Expectation, played: Played, facts: RequestFacts, compiled: CompiledPolicy
) -> frozenset[str]:
    ids = set(played.fires)
    ids.update(denial.rule for denial in (*played.denials, *played.decision.would_deny))
    if played.outcome == "allow":
        ids.update(set(expect.rules or ()) & played.rules)
        for allowance in compiled.allowances:
            if Fit.FITS in (*map(allowance.fit, facts.edits), *map(allowance.permits, facts.uses)):
                ids.add(allowance.id)
    return frozenset(ids)
