"""Combination: order makes no difference, nothing that is added permits more, and rows do what rules say."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from saegis_server.engine.api import Reaction
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import CompiledPolicy, compile_policy
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.decision import Decision
from saegis_server.policy.decide.uses import Use, UseOfRequest
from saegis_server.policy.errors import CompileError
from saegis_server.policy.schema.policy import Policy
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Edit, Phase
from tests.policy.policies import WORLD, ask, bundle, edit, policy
from tests.rpc import tiny
from tests.steering import reference

Written = dict[str, Any]
Asked = tuple[RequestEdit | UseOfRequest, ...]

_FEATURES = [("first", 1), ("first", 2), ("second", 1)]
_VALUES = st.sampled_from([-1.0, 0.0, 1.0, 2.0])
_USES = [
    UseOfRequest(Use.TEXT, "text"),
    UseOfRequest(Use.N, "sampling.n", 4.0),
    UseOfRequest(Use.TEMPERATURE, "sampling.temperature", 1.5),
    UseOfRequest(Use.LOGIT_BIAS, "sampling.logit_bias"),
]
_PHASES = st.sampled_from(["all", "all", "prompt", "completion"])


def _feature(named: tuple[str, int]) -> Written:
    return {"sae": named[0], "index": named[1]}


@st.composite
def rules(draw: st.DrawFn) -> Written:
    """One rule without an id."""
    targets = draw(st.lists(st.sampled_from(_FEATURES), min_size=1, max_size=2, unique=True))
    common = {"features": tuple(map(_feature, targets)), "phase": draw(_PHASES)}
    unit = draw(st.sampled_from(["feature", "feature", "feature", "norm_fraction"]))
    sae = targets[0][0]
    redirect = {
        **common,
        "features": tuple(_feature(target) for target in targets if target[0] == sae),
        "to": {"feature": {"sae": sae, "index": draw(st.sampled_from([1, 6]))}},
        "strength": draw(st.sampled_from([0.0, 1.0])),
        "threshold": draw(st.sampled_from([0.0, 0.5])),
    }
    action: Written = draw(
        st.one_of(
            st.builds(lambda s: {"ban": {**common, "strength": s}}, st.sampled_from([0.0, 1.0, 2.0])),
            st.builds(lambda v: {"cap": {**common, "value": v, "unit": unit}}, _VALUES),
            st.builds(lambda v: {"floor": {**common, "value": v, "unit": unit}}, _VALUES),
            st.builds(lambda v, i: {"clamp": {**common, "value": v, "if_active": i}}, _VALUES, st.booleans()),
            st.builds(lambda v: {"scale": {**common, "factor": v}}, _VALUES),
            st.builds(lambda v: {"redirect": {**redirect, "factor": v}}, _VALUES),
            st.just({"watch": {"features": common["features"]}}),
        )
    )
    rule = {**action, "mode": draw(st.sampled_from([None, None, None, "audit", "shadow"]))}
    if "watch" not in rule and draw(st.booleans()):
        reading = {"feature": _feature(draw(st.sampled_from(_FEATURES))), "above": draw(_VALUES)}
        rule["when"] = {"if": {"not": {"all": (reading,)}} if draw(st.booleans()) else reading}
    return rule


@st.composite
def policies(draw: st.DrawFn, name: str = "p") -> Written:
    """A policy that concerns every request."""
    allowance = {"id": "any", "ops": tuple(Op), "max": draw(st.sampled_from([None, 1.0]))}
    words: tuple[Written, ...] = ()
    if draw(st.integers(0, 2)):
        words = (
            {"id": "words", "uses": tuple(draw(st.sets(st.sampled_from(Use), min_size=1)))},
            {"id": "bounded", "uses": ("n", "temperature"), "max": draw(st.sampled_from([1.5, 4.0]))},
        )
    limits: Written = {"after_bans": draw(st.booleans()), "max_edits": draw(st.sampled_from([None, 1]))}
    return {
        "apiVersion": "saegis.dev/v1",
        "kind": "Policy",
        "name": name,
        "serial": 1,
        "revision": "r1",
        "mode": draw(st.sampled_from(["enforce", "enforce", "enforce", "audit"])),
        "rules": tuple(
            {**rule, "id": f"r{number}"} for number, rule in enumerate(draw(st.lists(rules(), max_size=3)))
        ),
        "allow": (*((allowance,) if draw(st.integers(0, 3)) else ()), *words),
        "transparency": draw(st.sampled_from(["labels", "steered"])),
        **draw(st.sampled_from([{"told": "at_once"}, {"told": "judged"}, {"told": "judged", "hold": 5}])),
        "first_token": {"conditions": draw(st.booleans()), "rows": draw(st.booleans())},
        "limits": limits,
    }


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """Edits and watches of different features, and what goes beyond the ordinary."""
    chosen = draw(st.lists(st.sampled_from([*_FEATURES, ("first", 4)]), max_size=2, unique=True))
    ops = st.sampled_from([Op.CLAMP, Op.BAN, Op.ABLATE, Op.REDIRECT, Op.WATCH])
    phases = st.sampled_from(list(Phase))
    uses = draw(st.lists(st.sampled_from(_USES), max_size=2, unique=True))
    edits = (
        edit(
            index, draw(ops), draw(st.sampled_from([0.0, 1.0, 3.0])), sae=sae, place=place, phase=draw(phases)
        )
        for place, (sae, index) in enumerate(chosen)
    )
    return (*edits, *uses)


def compiled(written: Written) -> CompiledPolicy:
    """The policy, in the order in which it is written. Raises CompileError."""
    return compile_policy(Bundle(Policy.model_validate(written), (), {}, {}, digest="d"), WORLD)


def holding(written: Written) -> CompiledPolicy:
    """The policy; examples of policies that do not compile are passed over."""
    try:
        return compiled(written)
    except CompileError:
        assume(False)
        raise


def shown(decision: Decision) -> object:
    """Everything that a decision says, as values that compare."""
    conditions = [
        (each.name, each.condition, each.reaction, each.message, SteeringProgram(each.rows).digest)
        for each in decision.guard.conditions
    ]
    plain = replace(
        decision,
        program=SteeringProgram(moves_first_token=decision.program.moves_first_token),
        guard=replace(decision.guard, conditions=()),
        ruled_program=SteeringProgram(),
    )
    digests = decision.program.digest, decision.ruled_program.digest
    return plain, digests, list(decision.program.sites), conditions


_settings = settings(max_examples=60, suppress_health_check=[HealthCheck.filter_too_much], deadline=None)


@given(policies("p"), policies("q"), requests(), st.randoms(use_true_random=False))
@_settings
def test_the_order_of_rules_and_policies_changes_nothing(
    one: Written, other: Written, edits: Asked, order: random.Random
) -> None:
    straight = PolicySet([holding(one), holding(other)])
    shuffled = [compiled(_shuffled(other, order)), compiled(_shuffled(one, order))]
    assert shown(straight.decide(ask(*edits))) == shown(PolicySet(shuffled).decide(ask(*edits)))


def _shuffled(written: Written, order: random.Random) -> Written:
    rules = list(written["rules"])
    order.shuffle(rules)
    targets = [
        {
            key: {**value, "features": tuple(reversed(value["features"]))}
            if isinstance(value, Mapping) and "features" in value
            else value
            for key, value in rule.items()
        }
        for rule in rules
    ]
    return {**written, "rules": tuple(targets)}


@given(policies("p"), policies("q"), requests())
@_settings
def test_a_further_policy_never_permits_more(one: Written, other: Written, edits: Asked) -> None:
    first, second = holding(one), holding(other)
    before = PolicySet([first]).decide(ask(*edits))
    after = PolicySet([first, second]).decide(ask(*edits))
    assert after.allowed <= before.allowed
    assert set(before.denials) <= set(after.denials)
    assert before.concealed <= after.concealed
    if before.allowed and after.allowed:
        _assert_no_weaker(before, after)
        assert before.guard.hold_back <= after.guard.hold_back
        assert before.guard.reads_first_token <= after.guard.reads_first_token
        assert before.program.moves_first_token <= after.program.moves_first_token


@given(policies("p"), rules(), requests())
@_settings
def test_a_further_rule_never_permits_more(written: Written, rule: Written, edits: Asked) -> None:
    before = PolicySet([holding(written)]).decide(ask(*edits))
    more = {**written, "rules": (*written["rules"], {**rule, "id": "more"})}
    after = PolicySet([holding(more)]).decide(ask(*edits))
    assert after.allowed <= before.allowed
    if before.allowed and after.allowed:
        _assert_no_weaker(before, after)


def _assert_no_weaker(before: Decision, after: Decision) -> None:
    """Every ban that was in force is, no weaker and at no fewer tokens; and so is every redirect."""
    for site, program in before.program.sites.items():
        now = {ban.probe.key: ban for ban in after.program.sites[site].bans}
        for ban in program.bans:
            assert -now[ban.probe.key].a >= -ban.a
            assert now[ban.probe.key].phase in (ban.phase, Phase.ALL)
        standing = {
            replace(row, phase=phase).numbers()
            for row in after.program.sites[site].rules
            for phase in Phase
            if row.phase in (phase, Phase.ALL)
        }
        assert {row.numbers() for row in program.rules if row.target is not None} <= standing


@given(policies("p"), policies("q"), requests())
@_settings
def test_what_is_only_recorded_changes_nothing(one: Written, other: Written, edits: Asked) -> None:
    first, second = holding(one), holding({**other, "mode": "shadow"})
    alone = PolicySet([first]).decide(ask(*edits))
    beside = PolicySet([first], candidates=[holding({**other, "name": "p"})]).decide(ask(*edits))
    for also in (PolicySet([first, second]).decide(ask(*edits)), beside):
        assert (also.allowed, also.denials) == (alone.allowed, alone.denials)
        assert _without_guards(also) == _without_guards(alone)
        acting = [each for each in also.guard.conditions if each.reaction is not Reaction.RECORD]
        assert [each.name for each in acting] == [
            each.name for each in alone.guard.conditions if each.reaction is not Reaction.RECORD
        ]


def _without_guards(decision: Decision) -> str:
    sites = {site: replace(program, guards=()) for site, program in decision.program.sites.items()}
    return SteeringProgram({site: each for site, each in sites.items() if each != SiteProgram()}).digest


@given(policies("p"), policies("q"), requests())
@_settings
def test_no_two_rows_of_a_probe_add_up(one: Written, other: Written, edits: Asked) -> None:
    decision = PolicySet([holding(one), holding(other)]).decide(ask(*edits))
    for site, program in decision.program.sites.items():
        own = [guarded.rows[site] for guarded in decision.guard.conditions if site in guarded.rows]
        every = [*program.rules, *(row for each in own for row in each.rules)]
        for place, row in enumerate(every):
            for before in every[:place]:
                assert row.probe.key != before.probe.key or not _overlap(row.phase, before.phase)
        keys = [ban.probe.key for ban in program.bans]
        assert len(set(keys)) == len(keys)
        assert not set(keys) & {ban.probe.key for each in own for ban in each.bans}


def _overlap(one: Phase, other: Phase) -> bool:
    return Phase.ALL in (one, other) or one is other


@given(policies("p"), policies("q"), st.floats(-4.0, 4.0), st.booleans())
@_settings
def test_rows_do_what_the_rules_say(one: Written, other: Written, f: float, prompt: bool) -> None:
    """What is set, under the least cap, above the greatest floor: by hand, of the rules in force always."""
    decision = PolicySet([holding(one), holding(other)]).decide(ask())
    if not decision.allowed:
        return
    written = [
        rule
        for each in (one, other)
        for rule in each["rules"]
        if (rule["mode"] or each["mode"]) == "enforce" and "when" not in rule
    ]
    named = {_key(feature): feature for feature in _FEATURES}
    conditional = {
        row.probe.key
        for each in decision.guard.conditions
        for site in each.rows.values()
        for row in site.rules
    }
    for program in decision.program.sites.values():
        for key in {row.probe.key for row in program.rules} - _folded(one, other) - conditional:
            acting = [row for row in program.rules if row.probe.key == key and _acts(row.phase, prompt)]
            found = f
            for row in acting:
                found = _valued(row, f)
            assert found == _by_hand(written, _feature(named[key]), f, prompt)


@cache
def _key(named: tuple[str, int]) -> str:
    return edit(named[1], sae=named[0]).edit.probe.key


def _folded(*policies: Written) -> set[str]:
    """The probes that a conditional cap or floor may have bounded always."""
    return {
        _key((feature["sae"], feature["index"]))
        for each in policies
        for rule in each["rules"]
        for bound in ("cap", "floor")
        if "when" in rule and bound in rule
        for feature in rule[bound]["features"]
    }


def _acts(phase: Phase, prompt: bool) -> bool:
    return phase is Phase.ALL or (phase is Phase.PROMPT) is prompt


#: Where ‖x‖ = 1, so that a fraction of it is a value.
_UNIT_NORM = 1.0


def _valued(row: Edit, f: float) -> float:
    if not f > row.above:
        return f
    return min(max(row.a * f + row.b * _UNIT_NORM, row.lo), row.hi)


def _by_hand(written: list[Written], feature: Written, f: float, prompt: bool) -> float:
    value, caps, floors = f, [], []
    for rule in written:
        for action in ("clamp", "scale", "cap", "floor", "redirect"):
            wanted = rule.get(action)
            if wanted is None or feature not in wanted["features"]:
                continue
            if wanted["phase"] != "all" and (wanted["phase"] == "prompt") is not prompt:
                continue
            if action == "cap":
                caps.append(wanted["value"])
            elif action == "floor":
                floors.append(wanted["value"])
            elif action == "scale":
                value = wanted["factor"] * f
            elif action == "redirect":
                value = -wanted["strength"] * f if f > wanted["threshold"] else f
            elif not wanted["if_active"] or f > 0.0:
                value = wanted["value"]
    return float(max([min([value, *caps]), *floors]))


def test_caps_take_the_minimum_and_bound_what_is_set() -> None:
    target = "features: [{sae: first, index: 3}]"
    one = policy(f"rules: [{{id: a, cap: {{{target}, value: 3}}}}, {{id: b, clamp: {{{target}, value: 5}}}}]")
    other = policy(f"rules: [{{id: a, cap: {{{target}, value: 2}}}}]", name="q")
    decision = PolicySet([other, one]).decide(ask())
    (row,) = decision.program.sites[tiny.FIRST_SITE].rules
    assert (row.a, row.b) == (0.0, 2.0)
    x = reference.vector(row.probe.read) * 3.0
    moved = reference.change(row, x, prompt=True, norm=1.0)
    value = reference.read(row.probe, x)
    expected = (2.0 - value) * reference.vector(row.probe.write)
    assert abs(moved - expected).max() < 1e-9


def test_a_redirect_is_written_as_the_rule_says() -> None:
    """x − (1+s)·f·w + k·f·v where f is above the threshold, in float64; the same rule twice counts once."""
    text = """
        rules: [{id: ID, redirect: {features: [{sae: first, index: 3}], to: {feature: {sae: first, index: 5}},
        factor: 1.5, unit: max_activation, strength: 0.5, threshold: 0.25}}]
    """
    one, other = policy(text.replace("ID", "a")), policy(text.replace("ID", "b"), name="q")
    (row,) = PolicySet([one, other]).decide(ask()).program.sites[tiny.FIRST_SITE].rules
    source, target = edit(3).edit.probe, edit(5).edit.probe
    for at in (0.9, 1.1, 3.0):
        direction = reference.vector(source.read)
        x = direction * (at - source.value_bias) / (direction @ direction)
        f = reference.read(source, x)
        moved = 1.5 * (2.0 / 4.0) * f * reference.vector(target.write)
        moved -= 1.5 * f * reference.vector(source.write)
        assert abs(f - at) < 1e-6
        found = reference.change(row, x, prompt=True, norm=1.0)
        assert abs(found - (moved if at > 0.25 * 4.0 else 0.0)).max() < 1e-9


def test_a_redirect_to_a_direction_of_the_bundle_is_at_the_site_of_what_it_reads() -> None:
    vector = torch.arange(1.0, tiny.WIDTH + 1)
    text = """
        rules: [{id: a, redirect: {features: [{sae: second, index: 3}], factor: 2,
        to: {direction: {file: directions/all.safetensors}}}}]
    """
    found = compile_policy(bundle(text, directions={"v": vector}), WORLD)
    program = PolicySet([found]).decide(ask()).program
    (row,) = program.sites[tiny.SECOND_SITE].rules
    assert row.target is not None
    assert torch.allclose(row.target.write, vector / vector.norm())
    assert list(program.sites) == [tiny.SECOND_SITE]
