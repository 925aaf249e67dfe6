"""Authority: an edit that no allowance covers is denied, and so is one beyond a limit, by its name."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.policy.decide.authority import CompiledAllowance, Fit
from saegis_server.policy.decide.cases import run_cases
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.decide.uses import ORDINARY, Use, UseOfRequest, beyond
from saegis_server.sae.catalog import FoundFeature
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.sae.request_edit import RequestEdit
from saegis_server.steering.operations import Op, Unit
from saegis_server.steering.rows import Phase
from tests.policy.policies import (
    CATALOG,
    WORLD,
    along,
    bundle,
    decide,
    edit,
    policy,
    reasons,
    redirect,
    watch,
)
from tests.rpc import tiny

VECTOR = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(5))
ALL_OPS = "[clamp, clamp_if_active, scale, add, cap, floor, ablate, ban, redirect, watch]"
ANYTHING = f"allow: [{{id: any, ops: {ALL_OPS}, directions: true}}]"


def test_without_an_allowance_a_request_may_steer_nothing() -> None:
    nothing = policy()
    assert decide(nothing).allowed
    decision = decide(nothing, edit(3), along(VECTOR, place=1))
    assert reasons(decision.denials) == {
        ("p", "allow", "steering.edits[0]"),
        ("p", "allow", "steering.edits[1]"),
    }
    assert not decision.program.steers


@pytest.mark.parametrize("phase", [Phase.PROMPT, Phase.COMPLETION])
def test_an_edit_of_a_part_of_the_tokens_is_an_edit(phase: Phase) -> None:
    assert not decide(policy(), edit(3, phase=phase)).allowed


@pytest.mark.parametrize(
    ("entry", "asked", "fits"),
    [
        ("ops: [clamp]", edit(3), True),
        ("ops: [scale]", edit(3), False),
        ("ops: [clamp], features: [{sae: first, index: 3}]", edit(3), True),
        ("ops: [clamp], features: [{sae: first, index: 3}]", edit(4), False),
        ("ops: [clamp], features: [{sae: first, index: 3}]", edit(3, sae="second"), False),
        ("ops: [clamp], features: []", edit(3), False),
        ("ops: [clamp], sites: [layers.0]", edit(3), True),
        ("ops: [clamp], sites: [layers.1]", edit(3), False),
        ("ops: [clamp], min: 1, max: 2", edit(3, value=1.0), True),
        ("ops: [clamp], min: 1, max: 2", edit(3, value=2.5), False),
        ("ops: [clamp], min: 1, max: 2", edit(3, value=0.5), False),
        ("ops: [clamp], max: 2", edit(3, value=-1e6), True),
        ("ops: [clamp], max: 2", edit(3, value=math.nan), False),
        ("ops: [clamp]", edit(3, value=math.nan), False),
        ("ops: [clamp], unit: norm_fraction", edit(3, unit=Unit.NORM_FRACTION), True),
        ("ops: [clamp], unit: norm_fraction", edit(3), False),
        # Feature 3's recorded maximum is 4, that of 10 is not known.
        ("ops: [clamp]", edit(3, unit=Unit.MAX_ACTIVATION), True),
        ("ops: [clamp], max: 1.2, unit: max_activation", edit(3, value=4.8), True),
        ("ops: [clamp], max: 1.2, unit: max_activation", edit(3, value=4.9), False),
        ("ops: [clamp], min: -1, unit: max_activation", edit(3, value=-4.1), False),
        ("ops: [clamp], max: 5", edit(3, value=1.25, unit=Unit.MAX_ACTIVATION), True),
        ("ops: [clamp], max: 5", edit(3, value=1.26, unit=Unit.MAX_ACTIVATION), False),
        ("ops: [clamp], min: -5", edit(3, value=-2.0, unit=Unit.MAX_ACTIVATION), False),
        ("ops: [clamp], unit: max_activation", edit(3, value=math.nan), False),
        ("ops: [clamp], max: 1.2, unit: max_activation", edit(10, value=0.1), False),
        ("ops: [clamp], unit: max_activation", edit(10, value=0.1), False),
        ("ops: [clamp]", edit(3, value=0.1, unit=Unit.NORM_FRACTION), False),
        ("ops: [clamp], unit: max_activation", edit(3, value=0.1, unit=Unit.NORM_FRACTION), False),
        ("ops: [add], unit: max_activation, directions: true", along(VECTOR), False),
        ("ops: [scale], unit: norm_fraction, max: 2", edit(3, Op.SCALE, 1.5), True),
        ("ops: [ablate], min: 1", edit(3, Op.ABLATE), False),
        ("ops: [ablate], max: 1", edit(3, Op.ABLATE), True),
        ("ops: [ban], max: 1", edit(3, Op.BAN, None), True),
        ("ops: [ban], max: 1", edit(3, Op.BAN, 2.0), False),
        # What a redirect reads and what it writes must both be covered.
        ("ops: [redirect]", redirect(3, 5), True),
        ("ops: [clamp, scale]", redirect(3, 5), False),
        ("ops: [redirect], features: [{sae: first, indices: [3, 5]}]", redirect(3, 5), True),
        ("ops: [redirect], features: [{sae: first, index: 3}]", redirect(3, 5), False),
        ("ops: [redirect], features: [{sae: first, index: 5}]", redirect(3, 5), False),
        ("ops: [redirect], features: [{sae: first, index: 3}]", redirect(3, 3), True),
        ("ops: [redirect]", redirect(3, VECTOR), False),
        ("ops: [redirect], directions: true", redirect(3, VECTOR), True),
        ("ops: [redirect], features: [], directions: true", redirect(3, VECTOR), False),
        ("ops: [redirect]", redirect(VECTOR, 3), False),
        ("ops: [redirect], directions: true", redirect(VECTOR, 3), True),
        ("ops: [redirect], features: [], directions: true", redirect(VECTOR, 3), False),
        ("ops: [redirect], features: [], directions: true", redirect(VECTOR, VECTOR.flip(0)), True),
        ("ops: [redirect], min: -1, max: 2", redirect(factor=2.0), True),
        ("ops: [redirect], min: -1, max: 2", redirect(factor=2.5), False),
        ("ops: [redirect], min: -1, max: 2", redirect(factor=-1.5), False),
        # The maxima are 4 and 2, so that one of both maxima is half a unit for a unit.
        ("ops: [redirect], max: 1", redirect(3, 5, 2.0, unit=Unit.MAX_ACTIVATION), True),
        ("ops: [redirect], max: 1", redirect(3, 5, 2.1, unit=Unit.MAX_ACTIVATION), False),
        ("ops: [redirect], max: 2, unit: max_activation", redirect(3, 5, 1.0), True),
        ("ops: [redirect], max: 2, unit: max_activation", redirect(3, 5, 1.01), False),
        ("ops: [redirect], unit: max_activation", redirect(3, 10, 0.1), False),
        ("ops: [redirect], unit: max_activation", redirect(10, 3, 0.1), False),
        ("ops: [redirect], unit: max_activation, directions: true", redirect(3, VECTOR, 0.1), False),
        ("ops: [redirect], unit: norm_fraction", redirect(), False),
        # A strength is a plain number, at most the greatest value, or 0.
        ("ops: [redirect], max: 2", redirect(factor=1.0, strength=2.0), True),
        ("ops: [redirect], max: 2", redirect(factor=1.0, strength=2.1), False),
        ("ops: [redirect], max: 2, unit: max_activation", redirect(3, 5, 1.0, strength=2.1), False),
        ("ops: [redirect], min: -3, max: -1", redirect(factor=-2.0), True),
        ("ops: [redirect], min: -3, max: -1", redirect(factor=-2.0, strength=0.1), False),
        ("ops: [redirect], min: 1", redirect(factor=1.0, strength=1e6, threshold=1e6), True),
        ("ops: [add]", along(VECTOR), False),
        ("ops: [add], directions: true", along(VECTOR), True),
        ("ops: [add], features: [{sae: first, index: 3}], directions: true", along(VECTOR), True),
        ("ops: [clamp], features: [{sae: first, index: 3}], directions: true", edit(4), False),
    ],
)
def test_an_allowance_covers_what_it_says(entry: str, asked: RequestEdit, fits: bool) -> None:
    decision = decide(policy(f"allow: [{{id: entry, {entry}}}]"), asked)
    covered = ("p", "allow", "steering.edits[0]") not in reasons(decision.denials)
    assert covered is fits


@pytest.mark.parametrize(
    ("entry", "asked", "told"),
    [
        (
            "max: 1",
            redirect(factor=2.0),
            "2 in unit feature is not in the range of few: at most 1, in unit feature",
        ),
        (
            "max: 1",
            redirect(factor=3.0, unit=Unit.MAX_ACTIVATION),
            "3 in unit max_activation, that is 1.5 in unit feature, is not in the range of few: at most 1, "
            "in unit feature",
        ),
        (
            "max: 1, unit: max_activation",
            redirect(3, 10, 0.5),
            "0.5 in unit feature cannot be held against few: at most 1, in unit max_activation; no largest "
            "activation is recorded for feature 10",
        ),
        (
            "max: 1, unit: max_activation, directions: true",
            redirect(3, VECTOR, 0.5),
            "0.5 in unit feature cannot be held against few: at most 1, in unit max_activation; a direction "
            "has no maximum",
        ),
        ("max: 1", redirect(strength=2.0), "a strength of 2 is not in the range of few: at most 1"),
        (
            "features: [{sae: first, index: 3}]",
            redirect(3, 5),
            "the policy does not allow redirect of feature 3 to feature 5 at layers.0.resid_post",
        ),
        (
            "max: 1",
            redirect(3, VECTOR),
            "the policy does not allow redirect of feature 3 to a direction at layers.0.resid_post",
        ),
    ],
)
def test_why_a_redirect_is_not_allowed_is_told(entry: str, asked: RequestEdit, told: str) -> None:
    (denial,) = decide(policy(f"allow: [{{id: few, ops: [redirect], {entry}}}]"), asked).denials
    assert denial.message == told


def test_a_value_out_of_range_is_told_with_the_entry() -> None:
    (denial,) = decide(policy("allow: [{id: small, ops: [clamp], max: 2}]"), edit(3, value=5.0)).denials
    assert denial.message == "5 in unit feature is not in the range of small: at most 2, in unit feature"


IN_MAXIMA = policy(
    "allow: [{id: small, ops: [clamp, add], max: 1.2, unit: max_activation, directions: true}]"
)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            edit(3, value=5.0),
            "5 in unit feature, that is 1.25 in unit max_activation, is not in the range of small: "
            "at most 1.2, in unit max_activation",
        ),
        (
            edit(3, value=0.1, unit=Unit.NORM_FRACTION),
            "0.1 in unit norm_fraction cannot be held against small: at most 1.2, in unit max_activation; "
            "a fraction of ‖x‖ is another value at every token",
        ),
        (
            edit(10),
            "1 in unit feature cannot be held against small: at most 1.2, in unit max_activation; "
            "no largest activation is recorded for feature 10",
        ),
        (
            along(VECTOR),
            "1 in unit feature cannot be held against small: at most 1.2, in unit max_activation; "
            "a direction has no maximum",
        ),
    ],
)
def test_a_value_in_another_unit_is_told_in_both_or_why_not(asked: RequestEdit, message: str) -> None:
    (denial,) = decide(IN_MAXIMA, asked).denials
    assert denial.message == message


_positive = st.floats(1e-3, 1e4)


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), _positive, st.booleans())
def test_no_conversion_lets_through_what_is_over(bound: float, value: float, most: float, near: bool) -> None:
    """Against exact arithmetic, and in particular for values that only rounding puts on the bound."""
    label = FeatureLabel(3, "a", max_activation=most)
    first = replace(CATALOG.entries[0], labels=Labels([label]))
    for unit, other, per_unit in (
        (Unit.MAX_ACTIVATION, Unit.FEATURE, Fraction(most)),
        (Unit.FEATURE, Unit.MAX_ACTIVATION, 1 / Fraction(most)),
    ):
        asked_value = float(Fraction(bound) * per_unit) if near else value
        asked = replace(
            edit(3, value=asked_value, unit=other), feature=FoundFeature(first, 3, label), value=asked_value
        )
        allowance = CompiledAllowance("a", frozenset(Op), None, False, None, -math.inf, bound, unit)
        inside = Fraction(asked_value) / per_unit <= Fraction(bound)
        assert (allowance.fit(asked) is Fit.FITS) is inside
        floor = replace(allowance, low=bound, high=math.inf)
        assert (floor.fit(asked) is Fit.FITS) is (Fraction(asked_value) / per_unit >= Fraction(bound))


def test_a_case_and_a_rule_compare_across_units() -> None:
    """What `policy test` judges, and rules of two policies, one bound each, in two units."""
    case = """
        - name: inside
          request: {edits: [{op: clamp, feature: {sae: first, index: 3}, value: 4.5}]}
          expect: {decision: allow}
        - name: outside
          request: {edits: [{op: clamp, feature: {sae: first, index: 3}, value: 5}]}
          expect: {decision: deny, message: that is 1.25 in unit max_activation}
    """
    text = "allow: [{id: small, ops: [clamp], max: 1.2, unit: max_activation}]"
    results = run_cases(compile_policy(bundle(text, cases=case), WORLD))
    assert [result.failures for result in results] == [(), ()]
    cap = "rules: [{{id: c, cap: {{features: [{{sae: first, index: 3}}], value: {}, unit: {}}}}}]"
    lower, higher = cap.format(1, "max_activation"), cap.format(4.5, "feature")
    for pair in ((lower, higher), (higher, lower)):
        both = [policy(text, name=name) for text, name in zip(pair, "ab", strict=True)]
        (row,) = decide(both).program.sites[tiny.FIRST_SITE].rules
        assert row.hi == 4.0


def test_every_policy_must_cover_an_edit() -> None:
    wide, narrow = policy(ANYTHING, name="wide"), policy("allow: [{id: c, ops: [cap]}]", name="narrow")
    assert decide([wide, narrow], edit(3, Op.CAP)).allowed
    decision = decide([wide, narrow], edit(3, Op.CLAMP))
    assert reasons(decision.denials) == {("narrow", "allow", "steering.edits[0]")}


def test_too_many_edits() -> None:
    limited = policy(f"{ANYTHING}\nlimits: {{max_edits: 2}}")
    edits = [edit(index, place=index) for index in range(3)]
    assert decide(limited, *edits[:2]).allowed
    assert reasons(decide(limited, *edits).denials) == {("p", "limits.max_edits", "steering.edits")}


def test_an_edit_of_what_is_banned_is_refused_by_the_ban() -> None:
    banning = policy(f"{ANYTHING}\nrules: [{{id: no, ban: {{features: [{{sae: first, index: 3}}]}}}}]")
    for op in Op:
        decision = decide(banning, edit(3, op, 1.0))
        expected = set() if op in (Op.BAN, Op.WATCH) else {("p", "no", "steering.edits[0]")}
        assert reasons(decision.denials) == expected
    assert decide(banning, edit(4)).allowed


BANS_FIRST = "rules: [{id: no, ban: {features: [{sae: first, index: 3}]}}]"
BANS_SECOND = "rules: [{id: no, ban: {features: [{sae: second, index: 3}]}}]"
BEHIND = {("p", "limits.after_bans", "steering.edits[0]")}


def test_edits_behind_a_ban() -> None:
    later, earlier = edit(4, sae="second"), edit(4)
    assert reasons(decide(policy(f"{ANYTHING}\n{BANS_FIRST}"), later).denials) == BEHIND
    assert decide(policy(f"{ANYTHING}\n{BANS_FIRST}"), earlier).allowed
    assert decide(policy(f"{ANYTHING}\n{BANS_SECOND}"), earlier).allowed
    assert decide(policy(f"{ANYTHING}\n{BANS_SECOND}"), later).allowed
    assert decide(policy(f"{ANYTHING}\n{BANS_FIRST}\nlimits: {{after_bans: true}}"), later).allowed


def test_a_later_ban_does_not_open_what_an_earlier_one_closes() -> None:
    first = policy(f"{ANYTHING}\n{BANS_FIRST}")
    second = policy(f"{ANYTHING}\n{BANS_SECOND}\nlimits: {{after_bans: true}}", name="q")
    assert reasons(decide([first, second], edit(4, sae="second")).denials) == BEHIND


def test_a_redirect_closes_what_is_behind_it_too() -> None:
    rule = "redirect: {features: [{sae: first, index: 3}], to: {feature: {sae: first, index: 5}}, factor: 1}"
    redirecting = policy(f"{ANYTHING}\nrules: [{{id: r, {rule}}}]")
    (denial,) = decide(redirecting, edit(4, sae="second")).denials
    assert (denial.rule, denial.field) == ("limits.after_bans", "steering.edits[0]")
    assert "behind layers.0.resid_post, where features are banned or redirected" in denial.message
    assert decide(redirecting, edit(4)).allowed


def test_a_conditional_ban_closes_what_is_behind_it_too() -> None:
    when = "when: {if: {feature: {sae: first, index: 5}, above: 1}}"
    conditional = BANS_FIRST.replace("id: no,", f"id: no, {when},")
    assert reasons(decide(policy(f"{ANYTHING}\n{conditional}"), edit(4, sae="second")).denials) == BEHIND


@pytest.mark.parametrize(
    ("entry", "asked", "fits"),
    [
        ("ops: [watch]", watch(3), True),
        ("ops: [clamp]", watch(3), False),
        ("ops: [watch]", edit(3), False),
        ("ops: [watch, clamp], min: 1, max: 2", watch(3), True),
        ("ops: [watch], features: [{sae: first, index: 3}]", watch(3), True),
        ("ops: [watch], features: [{sae: first, index: 3}]", watch(4), False),
        ("ops: [watch], sites: [layers.1]", watch(3), False),
        ("ops: [watch]", along(VECTOR, Op.WATCH, None), False),
        ("ops: [watch], directions: true", along(VECTOR, Op.WATCH, None), True),
    ],
)
def test_a_watch_needs_its_word(entry: str, asked: RequestEdit, fits: bool) -> None:
    assert decide(policy(f"allow: [{{id: entry, {entry}}}]"), asked).allowed is fits
    assert not decide([policy(f"allow: [{{id: entry, {entry}}}]"), policy(name="q")], asked).allowed


def test_a_watch_is_no_edit() -> None:
    reading = policy(f"allow: [{{id: w, ops: [watch]}}]\nlimits: {{max_edits: 0}}\n{BANS_FIRST}")
    plain, found = decide(reading), decide(reading, watch(3), watch(4, sae="second", place=1))
    assert (found.allowed, found.rules) == (True, plain.rules)
    (site,) = plain.program.sites
    assert replace(found.program.sites[site], watches=()) == plain.program.sites[site]
    assert [len(rows.watches) for rows in found.program.sites.values()] == [1, 1]
    assert [rows.changes_anything for rows in found.program.sites.values()] == [True, False]


@pytest.mark.parametrize("use", Use)
def test_what_goes_beyond_the_ordinary_needs_its_word(use: Use) -> None:
    value = 4.0 if use in ORDINARY else None
    asked = UseOfRequest(use, "field", value)
    (denial,) = decide(policy(ANYTHING), asked).denials
    assert (denial.rule, denial.field) == ("allow", "field")
    assert f"does not allow the use {use.value}" in denial.message
    allowing = policy(f"allow: [{{id: words, uses: [{use.value}]}}]")
    assert decide(allowing, asked).allowed
    assert not decide(allowing, edit(3)).allowed
    every = [allowing, policy(name="q")]
    assert reasons(decide(every, asked).denials) == {("q", "allow", "field")}
    others = ", ".join(other for other in Use if other is not use)
    assert not decide(policy(f"allow: [{{id: words, uses: [{others}]}}]"), asked).allowed


def test_a_word_with_a_value_has_a_bound() -> None:
    bounded = policy("allow: [{id: few, uses: [n], max: 4}, {id: hot, uses: [temperature], max: 1.5}]")
    for use, value, fits in ((Use.N, 4.0, True), (Use.N, 5.0, False), (Use.TEMPERATURE, 1.6, False)):
        assert decide(bounded, UseOfRequest(use, "field", value)).allowed is fits
    assert not decide(bounded, UseOfRequest(Use.TEMPERATURE, "field", math.nan)).allowed
    (denial,) = decide(bounded, UseOfRequest(Use.N, "sampling.n", 5.0)).denials
    assert denial.message == "n 5 is more than few allows: at most 4"
    assert beyond(Use.N, 1.0, "") is None
    assert beyond(Use.TEMPERATURE, math.nan, "") is not None


_ops = st.sampled_from(list(Op))
_values = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, -1.0, 2.0])


@st.composite
def edits(draw: st.DrawFn) -> RequestEdit:
    op, value, phase = draw(_ops), draw(_values), draw(st.sampled_from(list(Phase)))
    value = abs(value) if op is Op.BAN else value
    if draw(st.booleans()):
        return edit(
            draw(st.integers(0, 8)), op, value, sae=draw(st.sampled_from(["first", "second"])), phase=phase
        )
    seed = draw(st.integers(0, 3))
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(seed))
    return along(vector, op, value, site=draw(st.sampled_from(tiny.SITES)), phase=phase)


_COVERED = {("first", 1), ("first", 2), ("second", 3)}
NARROW = policy("""
    allow:
    - {id: a, ops: [clamp, scale], features: [{sae: first, indices: [1, 2]}], min: -1, max: 2}
    - {id: b, ops: [ablate], features: [{sae: second, index: 3}]}
""")


@given(edits())
def test_every_edit_is_covered_or_denied_with_a_rule(asked: RequestEdit) -> None:
    decision = decide(NARROW, asked)
    feature = asked.feature
    name = None if feature is None else (feature.loaded.id, feature.index)
    covered = name in _COVERED and (
        (asked.op in (Op.CLAMP, Op.SCALE) and name != ("second", 3) and -1.0 <= (asked.value or 0.0) <= 2.0)
        or (asked.op is Op.ABLATE and name == ("second", 3))
    )
    assert decision.allowed is covered
    assert decision.allowed or all(denial.rule == "allow" and denial.field for denial in decision.denials)
