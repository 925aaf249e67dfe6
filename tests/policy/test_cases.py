"""Cases: a bundle's own requests are decided and played through, and what comes otherwise is told."""

from __future__ import annotations

import pytest

from saegis_server.policy.decide.cases import CaseResult, coverage, run_cases
from saegis_server.policy.decide.compiled import CompiledPolicy, compile_policy
from saegis_server.policy.decide.explain import explain
from tests.policy.policies import WORLD, bundle, decide, edit, policy

TEXT = """
match: {tenants: [acme]}
rules:
- {id: no-bridge, reason: We sell tunnels., ban: {features: [{sae: first, index: 3}]}}
- {id: stop-river, when: {if: {feature: {sae: first, label: a river}, above: 1}}, stop: {}}
- id: no-poison
  when: {if: {feature: {sae: first, label: poison}, above: 2}, over: prompt}
  refuse: {message: Ask something else.}
- {id: note, when: {if: {feature: {sae: second, index: 1}, above: 0}, over: window, window: 2}, record: {}}
allow:
- {id: small, ops: [clamp], features: [{sae: first, index: 4}], max: 2}
protect:
- {id: keep, features: [{sae: first, index: 20}]}
"""


def compiled(cases: str, text: str = TEXT) -> CompiledPolicy:
    return compile_policy(bundle(text, cases=cases), WORLD)


def result(case: str) -> CaseResult:
    (found,) = run_cases(compiled(f"- {{name: it, {case}}}"))
    return found


ACME = "request: {{tenant: acme{}}}"
RIVER = "feature: {sae: first, index: 5}"
POISON = "feature: {sae: first, index: 7}"


def asking(more: str = "") -> str:
    return ACME.format(f", {more}" if more else "")


@pytest.mark.parametrize(
    ("request_", "expect"),
    [
        (asking(), "decision: allow, rules: [no-bridge], fires: []"),
        ("request: {tenant: other}", "decision: no_policy"),
        (asking("edits: [{op: clamp, feature: {sae: first, index: 4}, value: 1}]"), "decision: allow"),
        (
            asking("edits: [{op: clamp, feature: {sae: first, index: 4}, value: 3}]"),
            "decision: deny, rules: [allow], message: not in the range of small",
        ),
        (
            asking("edits: [{op: ablate, feature: {sae: first, index: 3}}]"),
            "decision: deny, rules: [no-bridge, allow]",
        ),
        (
            asking(
                "edits: [{op: redirect, feature: {sae: first, index: 4}, value: 2, strength: 1, "
                "threshold: 0.5, to: {feature: {sae: first, index: 6}}}]"
            ),
            "decision: deny, rules: [allow], message: not allow redirect of feature 4 to feature 6",
        ),
        (asking(f"readings: [{{{RIVER}, answer: [0, 1, 1.5, 3]}}]"), "decision: allow, stopped_at: 3"),
        (asking(f"readings: [{{{RIVER}, prompt: [0, 2], answer: [0]}}]"), "decision: allow, stopped_at: 0"),
        (
            asking(f"readings: [{{{RIVER}, answer: [0, 2]}}, {{{POISON}, prompt: [0, 2.5, 0]}}]"),
            "decision: deny, rules: [no-poison], fires: [no-poison], message: Ask something else.",
        ),
        (asking(f"readings: [{{{POISON}, answer: [9]}}]"), "decision: allow, fires: []"),
        (
            asking("readings: [{feature: {sae: second, index: 1}, answer: [0, 1, 0, 0]}]"),
            "decision: allow, fires: [note]",
        ),
    ],
)
def test_a_case_that_comes_out_as_expected(request_: str, expect: str) -> None:
    found = result(f"{request_}, expect: {{{expect}}}")
    assert found.passed, found.failures


@pytest.mark.parametrize(
    ("request_", "expect", "failure"),
    [
        (asking(), "decision: deny", "decision: expected deny, came allow"),
        (
            "request: {tenant: other}",
            "decision: allow",
            "decision: expected allow, came no_policy (match: no policy in force concerns this request)",
        ),
        (asking(), "decision: allow, rules: [gone]", "rules: expected gone, came no-bridge, no-poison, "),
        (asking(), "decision: allow, rules: []", "rules: expected none, came no-bridge, "),
        (asking(), "decision: allow, fires: [note]", "fires: expected note, came none"),
        (
            asking(f"readings: [{{{RIVER}, answer: [0, 2]}}]"),
            "decision: allow, stopped_at: 1",
            "stopped_at: expected 1, but it is stopped at 2",
        ),
        (asking(), "decision: allow, stopped_at: 1", "stopped_at: expected 1, but it is not stopped"),
        (asking(), "decision: allow, message: No., fires: []", "message: expected 'No.', came 'no message'"),
        (
            asking("edits: [{op: clamp, feature: {sae: first, index: 48}, value: 1}]"),
            "decision: deny",
            "steering.edits[0].feature.index: the SAE first has features 0 to 47, not 48",
        ),
        (
            asking("edits: [{op: clamp, feature: {sae: first, index: 4}}]"),
            "decision: deny",
            "steering.edits[0].value: clamp needs a value",
        ),
        (
            asking("edits: [{op: scale, feature: {sae: first, index: 4}, value: 1, unit: max_activation}]"),
            "decision: deny",
            "steering.edits[0].unit: scale takes no unit",
        ),
        (
            asking("edits: [{op: redirect, feature: {sae: first, index: 4}, value: 1}]"),
            "decision: deny",
            "steering.edits[0].to: redirect needs a target to write instead",
        ),
        (
            asking(
                "edits: [{op: clamp, feature: {sae: first, index: 4}, value: 1, "
                "to: {feature: {sae: first, index: 6}}}]"
            ),
            "decision: deny",
            "steering.edits[0].to: clamp takes no target to write instead",
        ),
        (
            asking(
                "edits: [{op: redirect, feature: {sae: first, index: 4}, value: 1, "
                "to: {feature: {sae: second, index: 6}}}]"
            ),
            "decision: deny",
            "steering.edits[0].to: second:6 is at layers.1.resid_post, and what is redirected is at",
        ),
        (
            asking("readings: [{feature: {sae: first, index: 30}, prompt: [1]}]"),
            "decision: allow",
            "request.readings[0]: no rule reads first:30",
        ),
    ],
)
def test_what_comes_otherwise_is_told(request_: str, expect: str, failure: str) -> None:
    found = result(f"{request_}, expect: {{{expect}}}")
    assert not found.passed
    assert len(found.failures) == 1
    assert found.failures[0].startswith(failure)


def test_which_rules_the_cases_reach() -> None:
    cases = f"""
        - name: a ban is expected
          {asking()}
          expect: {{decision: allow, rules: [no-bridge]}}
        - name: it is stopped
          {asking(f"readings: [{{{RIVER}, answer: [2]}}]")}
          expect: {{decision: allow, stopped_at: 1}}
        - name: an edit is covered
          {asking("edits: [{op: clamp, feature: {sae: first, index: 4}, value: 1}]")}
          expect: {{decision: allow}}
        - name: an edit is protected
          {asking("edits: [{op: clamp, feature: {sae: first, index: 20}, value: 1}]")}
          expect: {{decision: deny, rules: [keep]}}
    """
    policy = compiled(cases)
    results = run_cases(policy)
    assert [each.failures for each in results] == [()] * 4
    assert coverage(policy, results) == {
        "keep": True,
        "no-bridge": True,
        "no-poison": False,
        "note": False,
        "small": True,
        "stop-river": True,
    }


def test_cases_ask_for_what_goes_beyond_the_ordinary() -> None:
    words = "allow: [{id: few, uses: [n], max: 4}, {id: see, ops: [watch]}]"
    cases = """
        - name: a few
          request: {uses: [{word: n, value: 3}], edits: [{op: watch, feature: {sae: first, index: 4}}]}
          expect: {decision: allow}
        - name: too many, and text
          request: {uses: [{word: n, value: 5}, {word: text}]}
          expect: {decision: deny, rules: [allow], message: n 5 is more than few allows}
        - name: one is ordinary
          request: {uses: [{word: n, value: 1}]}
          expect: {decision: allow}
    """
    asking = compile_policy(bundle(words, cases=cases), WORLD)
    results = run_cases(asking)
    assert [each.failures for each in results] == [()] * 3
    assert coverage(asking, results) == {"few": True, "see": True}


def test_a_policy_without_cases_reaches_nothing() -> None:
    policy = compiled("")
    assert run_cases(policy) == ()
    assert not any(coverage(policy, ()).values())


def test_a_decision_in_words() -> None:
    allowing = policy(TEXT + "limits: {max_relative_norm: 0.5}\n")
    told = explain(decide(allowing, edit(4, value=1.0)))
    assert told[0] == "allowed under p@r1"
    assert "  p/no-bridge: ban of the red bridge, in force: We sell tunnels." in told
    assert "  p/stop-river: stop of a river, in force, when its condition holds" in told
    assert any(
        line.startswith("  at layers.0.resid_post: 1 own edits, 1 bans, 2 readings; own edits move")
        for line in told
    )
    denied = explain(decide(allowing, edit(3)))
    assert denied[0] == "denied under p@r1"
    assert "  denied by p/no-bridge at steering.edits[0]: this feature is banned" in denied
    shadowed = explain(decide(policy("mode: audit\n" + TEXT), edit(3)))
    assert "  would be denied by p/no-bridge at steering.edits[0]: this feature is banned" in shadowed
