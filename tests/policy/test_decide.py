"""Decisions: who is concerned, what acts and what is only recorded, and what cannot be evaluated denies."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import pytest
import torch

from saegis_server.engine.api import Reaction
from saegis_server.policy.decide.compiled import CompiledPolicy, compile_policy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.explain import explain
from saegis_server.policy.decide.protection import CompiledProtection, Protections
from saegis_server.policy.decide.selectors import Selected
from saegis_server.policy.schema.policy import Mode
from saegis_server.steering import rows
from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Literal, Negation, Scope
from saegis_server.steering.operations import Op
from saegis_server.steering.rows import Phase, Probe
from saegis_server.steering.site import Place, Site
from tests.policy.policies import WORLD, along, ask, bundle, decide, edit, policy, reasons, redirect, world
from tests.rpc import tiny

ALLOW = "allow: [{id: any, ops: [clamp, add, ban], directions: true}]"
ANY_OP = "allow: [{id: any, ops: [clamp, scale, ban, redirect, watch]}]"
BAN = (
    "{{id: {id}, ban: {{features: [{{sae: first, index: {index}}}], strength: {strength}, phase: {phase}}}}}"
)


def ban(index: int = 3, *, id: str = "no", strength: float = 0.0, phase: str = "all") -> str:
    """A rule that bans a feature."""
    return BAN.format(id=id, index=index, strength=strength, phase=phase)


def test_who_is_concerned() -> None:
    named = policy("match: {tenants: [acme], roles: [steer, inspect], models: [tiny]}")
    policies = PolicySet([named])
    assert policies.decide(ask(roles=("use", "steer"))).policy_revision == "p@r1"
    for other in (
        ask(tenant="other", roles=("steer",)),
        ask(roles=("use",)),
        ask(roles=()),
        ask(roles=("steer",), model="large"),
    ):
        decision = policies.decide(other)
        assert not decision.allowed
        assert reasons(decision.denials) == {("", "match", "")}
        assert decision.policy_revision == ""
    assert not PolicySet().decide(ask()).allowed


def test_revisions_are_named_by_policy() -> None:
    policies = PolicySet([policy(name="z"), policy(name="a"), policy("mode: shadow", name="m")])
    assert policies.revision == "a@r1,z@r1"
    assert policies.decide(ask()).policy_revision == "a@r1,z@r1"


def test_the_stricter_policy_says_when_text_is_told_and_what_is_done_at_the_first_token() -> None:
    rule = f"rules: [{ban()}]\n{ALLOW}"
    plain = policy(rule, name="a")
    judged = policy(
        f"told: judged\nhold: 7\nfirst_token: {{rows: true}}\n{rule.replace('no,', 'not,')}", name="b"
    )
    reading = policy("told: judged\nfirst_token: {conditions: true}", name="c")
    recorded = policy(
        "mode: audit\ntold: judged\nhold: 9\nfirst_token: {conditions: true, rows: true}", name="d"
    )

    def said(decision: Decision) -> tuple[int, bool, bool]:
        guard = decision.guard
        return guard.hold_back, guard.reads_first_token, decision.program.moves_first_token

    assert said(decide([plain, recorded])) == (0, False, False)
    assert said(decide([plain, judged])) == (8, False, True)
    assert said(decide([judged, plain], edit(5))) == (8, False, True)
    assert said(decide([plain, reading])) == (1, True, False)
    told = explain(decide([judged, reading, plain]))
    assert "  text is told only once its tokens, and 7 after them, have been judged" in told
    assert "  text is told only once its tokens have been judged" in explain(decide([reading]))
    assert "  conditions read the first token too" in told
    assert "  rows move the first token too" in told


@pytest.mark.parametrize("when", ["", "when: {if: {feature: {sae: first, index: 1}, above: 1}}, "])
def test_how_many_bans_fit_does_not_tell_which_are_in_force_already(when: str) -> None:
    small = world(bans=3)
    text = f"rules: [{ban(3).replace('ban:', f'{when}ban:')}]\nallow: [{{id: any, ops: [ban, watch]}}]"
    concealing = policy(f"transparency: steered\n{text}", world=small)
    full = [edit(index, Op.BAN, 0.0, place=place) for place, index in enumerate((5, 6))]
    assert decide(concealing, *full).allowed
    for index in (3, 7):
        found = decide(concealing, *full, edit(index, Op.BAN, 0.0, place=2))
        assert [(each.field, each.shared) for each in found.denials] == [("steering.edits[2]", True)]
    telling = policy(text, world=small)
    assert decide(telling, *full, edit(3, Op.BAN, 0.0, place=2)).allowed


def test_two_policies_of_one_name_and_of_two_servers() -> None:
    with pytest.raises(ValueError, match="one name"):
        PolicySet([policy(), policy()])
    elsewhere = compile_policy(bundle(name="q"), replace(WORLD, sites=tiny.SITES[:1]))
    with pytest.raises(ValueError, match="different sites"):
        PolicySet([policy(), elsewhere])


def test_the_rules_in_force_become_rows() -> None:
    decision = decide(
        policy(f"""
            rules:
            - {ban(3, strength=2.0)}
            - {{id: cap, reason: Because., cap: {{features: [{{sae: second, index: 4}}], value: 1}}}}
        """)
    )
    first, second = decision.program.sites[tiny.FIRST_SITE], decision.program.sites[tiny.SECOND_SITE]
    assert [row.numbers() for row in first.bans] == [rows.ban(first.bans[0].probe, 2.0).numbers()]
    assert [row.numbers() for row in second.rules] == [rows.cap(second.rules[0].probe, 1.0).numbers()]
    told = [(rule.name, rule.action, rule.mode, rule.reason, rule.labels) for rule in decision.rules]
    assert told == [
        ("p/cap", "cap", Mode.ENFORCE, "Because.", ()),
        ("p/no", "ban", Mode.ENFORCE, "", ("the red bridge",)),
    ]


def test_bans_take_the_greatest_strength_and_all_tokens() -> None:
    one, other = (
        policy(f"rules: [{ban(strength=1.0, phase='prompt')}]"),
        policy(f"rules: [{ban(strength=2.0, phase='completion')}]", name="q"),
    )
    (row,) = decide([one, other]).program.sites[tiny.FIRST_SITE].bans
    assert (-row.a, row.phase) == (2.0, Phase.ALL)


def test_a_ban_of_the_request_adds_to_the_policies_own() -> None:
    banning = policy(f"{ALLOW}\nrules: [{ban(strength=1.0, phase='completion')}]")
    decision = decide(banning, edit(3, Op.BAN, 2.0, phase=Phase.PROMPT), edit(4, Op.BAN, 0.5, place=1))
    found = decision.program.sites[tiny.FIRST_SITE].bans
    assert [(-row.a, row.phase) for row in found] == [(2.0, Phase.ALL), (0.5, Phase.ALL)]
    weaker = decide(banning, edit(3, Op.BAN, 0.5)).program.sites[tiny.FIRST_SITE].bans
    assert [-row.a for row in weaker] == [1.0]


def test_bans_of_the_request_that_cannot_hold_are_denied_by_the_ban_there() -> None:
    vector = torch.zeros(tiny.WIDTH)
    vector[0] = 1.0
    target = f"{{file: directions/all.safetensors, site: {tiny.FIRST_SITE}}}"
    text = f"{ALLOW}\nrules: [{{id: no, ban: {{directions: [{target}]}}}}]"
    half = replace(WORLD, activations=torch.bfloat16)
    banning = compile_policy(bundle(text, directions={"v": vector}), half)
    decision = decide(banning, along(torch.ones(tiny.WIDTH), Op.ADD), along(-vector, Op.BAN, 0.0, place=1))
    assert reasons(decision.denials) == {("p", "no", "steering.edits[1]")}
    assert not decision.program.sites


def test_more_bans_than_there_is_room_for() -> None:
    banning = policy(f"{ALLOW}\nrules: [{ban(3)}]", world=world(bans=2))
    assert decide(banning, edit(4, Op.BAN, 0.0)).allowed
    decision = decide(banning, edit(4, Op.BAN, 0.0), edit(5, Op.BAN, 0.0, place=1))
    assert reasons(decision.denials) == {("p", "no", "steering.edits[1]")}


def test_the_least_bound_is_on_every_site_with_edits() -> None:
    one = policy(f"{ALLOW}\nlimits: {{max_relative_norm: 0.5}}".replace(", ban", ""))
    other = policy(f"{ALLOW}\nlimits: {{max_relative_norm: 0.25}}".replace(", ban", ""), name="q")
    audited = policy("mode: audit\nlimits: {max_relative_norm: 0.1}", name="r")
    decision = decide([one, other, audited], edit(4), edit(4, sae="second", place=1))
    bounds = {site: program.max_relative_norm for site, program in decision.program.sites.items()}
    assert bounds == {tiny.FIRST_SITE: 0.25, tiny.SECOND_SITE: 0.25}
    told = {(rule.policy, rule.action, rule.mode) for rule in decision.rules}
    assert told == {
        ("p", "limit", Mode.ENFORCE),
        ("q", "limit", Mode.ENFORCE),
        ("r", "limit", Mode.AUDIT),
    }
    assert decide([one, other]).program.sites == {}


WATCHING = """
rules:
- id: stop
  when:
    if:
      any:
      - {feature: {sae: second, index: 2}, above: 1}
      - not: {all: [{feature: {sae: first, index: 9}, below: 2}]}
    over: window
    window: 8
    sticky: false
  stop: {}
- {id: peak, watch: {features: [{sae: first, indices: [9, 1]}]}}
"""


def test_conditions_read_the_guards_of_the_program() -> None:
    decision = decide(policy(WATCHING))
    guards = [
        (site, probe.key) for site, program in decision.program.sites.items() for probe in program.guards
    ]
    wanted = [edit(1), edit(9), edit(2, sae="second")]
    assert set(guards) == {(each.site, each.edit.probe.key) for each in wanted}
    assert [site for site, _ in guards] == [tiny.FIRST_SITE, tiny.FIRST_SITE, tiny.SECOND_SITE]
    one, nine, two = (guards.index((each.site, each.edit.probe.key)) for each in wanted)
    (stop,) = decision.guard.conditions
    assert (stop.name, stop.reaction) == ("p/stop", Reaction.STOP)
    expression = AnyOf((Literal(two, 1.0), Negation(AllOf((Literal(nine, 2.0, above=False),)))))
    assert stop.condition == Condition(expression, Scope.WINDOW, 8, sticky=False)
    assert set(decision.peaks) == {(one, "p/peak", "first:1"), (nine, "p/peak", "first:9 (twins)")}


def test_the_same_feature_is_read_once_for_all_policies() -> None:
    stop = "rules: [{id: a, when: {if: {feature: {sae: first, index: 1}, above: 1}}, stop: {}}]"
    decision = decide([policy(stop), policy(stop, name="q")])
    assert len(decision.program.sites[tiny.FIRST_SITE].guards) == 1
    assert [each.condition.readings for each in decision.guard.conditions] == [{0}, {0}]


CONDITIONAL = "rules: [{{id: a, when: {{if: {{feature: {{sae: first, index: 1}}, above: 1}}}}, {}}}]"


def test_what_a_condition_leads_to() -> None:
    refuse = CONDITIONAL.format("refuse: {message: No.}").replace("above: 1}", "above: 1}, over: prompt")
    (found,) = decide(policy(refuse)).guard.conditions
    assert (found.reaction, found.message, found.condition.scope) == (Reaction.REFUSE, "No.", Scope.PROMPT)
    (found,) = decide(policy(CONDITIONAL.format("record: {}"))).guard.conditions
    assert found.reaction is Reaction.RECORD
    text = CONDITIONAL.format("ban: {features: [{sae: second, index: 3}], strength: 1}")
    decision = decide(policy(text))
    (found,) = decision.guard.conditions
    assert found.reaction is Reaction.EDIT
    assert [-row.a for row in found.rows[tiny.SECOND_SITE].bans] == [1.0]
    assert not decision.program.steers


def test_a_request_cannot_ban_away_a_value_that_a_rule_holds() -> None:
    """Where a feature is banned, what else is held of it says nothing: a floor or a clamp would be undone."""
    held = policy(f"""
        rules:
        - {{id: up, floor: {{features: [{{sae: first, index: 3}}], value: 1}}}}
        - {{id: at, clamp: {{features: [{{sae: first, index: 5}}], value: 2}}}}
        - {{id: under, cap: {{features: [{{sae: first, index: 7}}], value: 3}}}}
        {ALLOW}
    """)
    for index, rule in ((3, "up"), (5, "at")):
        assert reasons(decide(held, edit(index, Op.BAN)).denials) == {("p", rule, "steering.edits[0]")}
    assert decide(held, edit(7, Op.BAN)).allowed, "a ban is stricter than a cap"


@pytest.mark.parametrize("mode", ["enforce", "audit", "shadow"])
@pytest.mark.parametrize("when", ["", "when: {if: {feature: {sae: first, index: 8}, above: 1}}, "])
def test_what_is_redirected_and_what_it_is_redirected_to_is_kept_from_edits(mode: str, when: str) -> None:
    """A request may ban and watch what is redirected, and only watch what that is redirected to."""
    source, target = "features: [{sae: first, indices: [3, 5]}]", "to: {feature: {sae: first, index: 7}}"
    redirecting = policy(f"""
        mode: {mode}
        rules: [{{id: away, {when}redirect: {{{source}, {target}, factor: 2}}}}]
        {ANY_OP}
    """)
    beside = policy(ANY_OP, name="q")
    away = {("p", "away", "steering.edits[0]")}
    read, written = "this feature is redirected", "a rule redirects to this"
    for asked, told in (
        (edit(3), {read}),
        (edit(5, Op.SCALE), {read}),
        (edit(3, Op.BAN), set()),
        (edit(3, Op.WATCH, None), set()),
        (edit(7), {written}),
        (edit(7, Op.BAN), {written}),
        (edit(7, Op.WATCH, None), set()),
        (redirect(3, 4), {read}),
        (redirect(4, 5), {read}),
        (redirect(4, 7), {written}),
        (redirect(7, 4), {written}),
        (redirect(3, 7), {read, written}),
        (edit(4), set()),
        (redirect(4, 6), set()),
    ):
        decision = decide([redirecting, beside], asked)
        found = decision.denials if mode == "enforce" else decision.would_deny
        assert {denial.message for denial in found} == told
        assert reasons(found) == (away if told else set())
        assert len(found) == len(told)
        assert decision.allowed is (mode != "enforce" or not told)


def test_what_is_banned_may_not_be_redirected_nor_written_by_a_redirect() -> None:
    banning = policy(f"rules: [{ban(3)}]\nallow: [{{id: any, ops: [redirect]}}]")
    for asked in (redirect(3, 4), redirect(4, 3), redirect(3, 3)):
        (denial,) = decide(banning, asked).denials
        assert (denial.rule, denial.message) == ("no", "this feature is banned")
    assert decide(banning, redirect(4, 5)).allowed


def test_a_redirect_and_a_ban_of_the_same_feature_are_a_row_each() -> None:
    text = f"rules: [{ban(3, strength=1.0)}, {{id: away, redirect: {{features: [{{sae: first, index: 3}}], "
    text += "to: {feature: {sae: first, index: 7}}, factor: 2}}]"
    program = decide(policy(text)).program.sites[tiny.FIRST_SITE]
    assert [(row.factor, row.probe.key) for row in program.rules] == [(2.0, program.bans[0].probe.key)]
    assert [row.a for row in program.bans] == [-1.0]


def test_a_redirect_under_a_condition_acts_only_while_that_holds() -> None:
    text = CONDITIONAL.format(
        "redirect: {features: [{sae: first, index: 3}], to: {feature: {sae: first, index: 4}}, factor: 2}"
    )
    decision = decide(policy(text))
    (found,) = decision.guard.conditions
    (row,) = found.rows[tiny.FIRST_SITE].rules
    assert (found.reaction, row.factor) == (Reaction.EDIT, 2.0)
    assert not decision.program.steers


def test_a_conditional_ban_of_what_is_banned_always_makes_that_ban_stricter() -> None:
    always = policy(f"rules: [{ban(3, strength=0.5)}]")
    conditional = policy(
        CONDITIONAL.format("ban: {features: [{sae: first, index: 3}], strength: 2}"), name="q"
    )
    decision = decide([always, conditional])
    (row,) = decision.program.sites[tiny.FIRST_SITE].bans
    assert -row.a == 2.0
    (found,) = decision.guard.conditions
    assert (found.reaction, dict(found.rows)) == (Reaction.RECORD, {})


def test_a_request_that_bans_what_a_condition_bans_has_the_greater_strength_always() -> None:
    """Two rows of one probe would push twice while the condition holds."""
    text = CONDITIONAL.format("ban: {features: [{sae: first, indices: [3, 5]}], strength: 2}")
    decision = decide(policy(f"{text}\n{ALLOW}"), edit(3, Op.BAN))
    assert decision.allowed
    (row,) = decision.program.sites[tiny.FIRST_SITE].bans
    assert -row.a == 2.0
    (guarded,) = decision.guard.conditions
    assert guarded.reaction is Reaction.EDIT
    assert [len(program.bans) for program in guarded.rows.values()] == [1]
    both = decide(policy(f"{text}\n{ALLOW}"), edit(3, Op.BAN), edit(5, Op.BAN))
    assert (both.guard.conditions[0].reaction, dict(both.guard.conditions[0].rows)) == (Reaction.RECORD, {})
    untouched = decide(policy(f"{text}\n{ALLOW}"), edit(7, Op.BAN)).guard
    assert untouched.digest == decide(policy(text)).guard.digest


def test_rules_of_two_policies_that_contradict_each_other_deny() -> None:
    clamp = "rules: [{{id: {}, clamp: {{features: [{{sae: first, index: 3}}], value: {}}}}}]"
    policies = [policy(clamp.format("low", 1)), policy(clamp.format("high", 2), name="q")]
    decision = decide(policies)
    assert reasons(decision.denials) == {("p", "low", ""), ("q", "high", "")}
    assert "clamp to 1 and clamp to 2" in decision.denials[0].message
    audited = policy("mode: audit\n" + clamp.format("high", 2), name="q")
    assert decide([policies[0], audited]).allowed


RECORDED = """
rules:
- {id: no, MODE ban: {features: [{sae: first, index: 3}]}}
- {id: stop, MODE when: {if: {feature: {sae: first, index: 1}, above: 1}}, stop: {}}
"""


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("mode: audit" + RECORDED.replace("MODE", ""), Mode.AUDIT),
        ("mode: shadow" + RECORDED.replace("MODE", ""), Mode.SHADOW),
        ("mode: shadow" + RECORDED.replace("MODE", "mode: enforce,"), Mode.SHADOW),
        (ALLOW + RECORDED.replace("MODE", "mode: audit,"), Mode.AUDIT),
        (ALLOW + RECORDED.replace("MODE", "mode: shadow,"), Mode.SHADOW),
    ],
)
def test_what_is_only_recorded_does_not_act(text: str, mode: Mode) -> None:
    decision = decide([policy(ALLOW, name="base"), policy(text)], edit(3))
    assert decision.allowed
    assert not any(program.bans for program in decision.program.sites.values())
    assert {(rule.rule, rule.mode) for rule in decision.rules} == {("no", mode), ("stop", mode)}
    assert [each.reaction for each in decision.guard.conditions] == [Reaction.RECORD]
    would = {("p", "no", "steering.edits[0]")}
    if not text.startswith(ALLOW):
        would.add(("p", "allow", "steering.edits[0]"))
    assert reasons(decision.would_deny) == would
    assert {denial.mode for denial in decision.would_deny} == {mode}


def test_a_policy_that_only_audits_concerns_requests_and_one_in_shadow_does_not() -> None:
    assert decide(policy("mode: audit"), edit(3)).allowed
    assert not decide(policy("mode: shadow"), edit(3)).allowed


def test_a_candidate_is_evaluated_beside_the_policy_in_force() -> None:
    stop = "rules: [{{id: stop, when: {{if: {{feature: {{sae: first, index: {}}}, above: 1}}}}, stop: {{}}}}]"
    active, candidate = policy(f"{ALLOW}\n{stop.format(1)}"), policy(stop.format(2))
    decision = PolicySet([active], [candidate]).decide(ask(edit(4)))
    assert decision.allowed
    assert decision.policy_revision == "p@r1"
    found = [(each.name, each.reaction) for each in decision.guard.conditions]
    assert found == [("p/stop", Reaction.STOP), ("p/stop (candidate)", Reaction.RECORD)]
    assert [rule.name for rule in decision.rules] == [name for name, _ in found]
    assert reasons(decision.would_deny) == {("p", "allow", "steering.edits[0]")}
    assert [denial.mode for denial in decision.would_deny] == [Mode.SHADOW]


def test_readings_that_are_only_recorded_give_way(caplog: pytest.LogCaptureFixture) -> None:
    text = """
        rules:
        - {id: stop, when: {if: {feature: {sae: first, index: 1}, above: 1}}, stop: {}}
        - {id: a, mode: audit, watch: {features: [{sae: first, indices: [2, 3]}]}}
    """
    narrow = policy(text, world=world(watches=2))
    decision = decide(narrow)
    assert len(decision.program.sites[tiny.FIRST_SITE].guards) == 1
    assert decision.peaks == ()
    assert "p/a is not recorded" in caplog.text


def _broken(text: str) -> CompiledPolicy:
    """A policy whose protection cannot be evaluated: its vectors have another width than requests'."""
    wrong = Selected(tiny.FIRST_SITE, Probe.direction(torch.ones(5)), "wrong")
    protections = Protections("broken", (CompiledProtection("keep", 0.5, (wrong,)),))
    return replace(policy(text, name="broken"), protections=protections)


def test_what_cannot_be_evaluated_denies(caplog: pytest.LogCaptureFixture) -> None:
    decision = decide([policy(ALLOW), _broken(ALLOW)], edit(3))
    assert reasons(decision.denials) == {("broken", "evaluation", "")}
    assert "width" not in decision.denials[0].message
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)
    audited = decide([policy(ALLOW), _broken(f"mode: audit\n{ALLOW}")], edit(3))
    assert audited.allowed
    assert reasons(audited.would_deny) == {("broken", "evaluation", "")}


def test_an_edit_at_a_site_that_is_none_denies() -> None:
    stray = replace(edit(3), site=Site(7, Place.RESID_POST))
    decision = decide(policy(ALLOW), stray)
    assert reasons(decision.denials) == {("", "evaluation", "")}


def test_the_common_decision_is_looked_up() -> None:
    """Requests without edits get one and the same decision, so that its digest is worked out once."""
    policies = PolicySet([policy(f"match: {{tenants: [acme]}}\nrules: [{ban(3)}]"), policy(name="q")])
    first = policies.decide(ask())
    assert policies.decide(ask(roles=("steer",))) is first
    assert policies.decide(ask(tenant="other")) is not first
    started = time.perf_counter()
    for _ in range(1000):
        policies.decide(ask())
    assert time.perf_counter() - started < 1.0
