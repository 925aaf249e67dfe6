"""The schema: each fault is told at its line and key, in words that say what would be right."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from saegis_server.policy.errors import BundleError, SchemaError
from saegis_server.policy.schema.cases import Cases
from saegis_server.policy.schema.policy import (
    ACTIONS,
    All,
    Any_,
    Expression,
    Not,
    Part,
    Policy,
    Reading,
    When,
)
from saegis_server.policy.schema.validation import validated
from saegis_server.policy.schema.yaml_text import read_yaml
from saegis_server.problem import Problem
from tests.policy.bundles import CASES, PART, POLICY
from tests.tiers import sized

HEAD = "apiVersion: saegis.dev/v1\nkind: Policy\nname: p\nserial: 1\nrevision: a\n"


def policy(text: str) -> Policy:
    return validated(Policy, read_yaml(text.encode(), "policy.yaml"), "policy.yaml")


def problems(text: str, model: type[Policy | Part | Cases] = Policy) -> tuple[Problem, ...]:
    with pytest.raises(SchemaError) as caught:
        validated(model, read_yaml(text.encode(), "f.yaml"), "f.yaml")
    assert all(problem.file == "f.yaml" and problem.line for problem in caught.value.problems)
    return caught.value.problems


def test_a_whole_policy_is_read() -> None:
    found = policy(POLICY)
    assert [rule.action for rule in found.rules] == ["ban", "stop"]
    when = found.rules[1].when
    assert when is not None
    assert isinstance(when.if_, Any_)
    assert isinstance(when.if_.any[0], Reading)
    assert isinstance(when.if_.any[1], Not)
    assert found.limits.max_relative_norm == 0.5


@pytest.mark.parametrize(
    ("text", "line", "path", "told"),
    [
        ("rolls: 1", 6, "rolls", "there is no key 'rolls' here; did you mean 'rules'?"),
        ("xyz: 1", 6, "xyz", "there is apiVersion, kind, name"),
        ("urgent: no", 6, "urgent", "must be true or false, not 'no'; only true and false are"),
        ("urgent: 1", 6, "urgent", "must be true or false, not 1"),
        ("description: 5", 6, "description", "must be text, not 5; put it in quotes"),
        (
            "mode: enforced",
            6,
            "mode",
            "must be enforce, audit or shadow, not 'enforced'; did you mean enforce?",
        ),
        ("limits: []", 6, "limits", "must be a map of max_edits, max_relative_norm, after_bans; not a list"),
        ("limits:\n  max_edits: -1", 7, "limits.max_edits", "must be greater than or equal to 0, not -1"),
        ("limits: {max_edits: 1.0}", 6, "limits.max_edits", "must be a whole number, not 1.0"),
        ("limits: {max_relative_norm: .inf}", 6, "limits.max_relative_norm", "must be a finite number"),
        ("limits: {max_relative_norm: true}", 6, "limits.max_relative_norm", "must be a number, not true"),
        ("match: {tenants: acme}", 6, "match.tenants", "must be a list, not 'acme'"),
        ("match: {tenants: []}", 6, "match.tenants", "must have at least an entry"),
        ("match: {tenants: [acme-*]}", 6, "match", "'acme-*': a * stands for every one, alone"),
        ("rules: {}", 6, "rules", "must be a list, not a map"),
        ("rules:\n- ban: {features: [{index: 1}]}", 7, "rules[0].id", "must be given"),
        ("rules:\n- {id: A b, stop: {}}", 7, "rules[0].id", "must be up to 64 of a-z"),
        ("rules:\n- id: a\n  ban:", 8, "rules[0].ban", "has no value"),
        ("rules:\n- id: a\n  ban: {}", 8, "rules[0].ban", "name at least one of features and directions"),
        ("rules:\n- id: a\n  stop: {}", 7, "rules[0]", "stop: needs a `when`"),
        (
            "rules:\n- id: a\n  reason: ~\n  watch: {features: [{index: 1}]}",
            8,
            "rules[0].reason",
            "has no value",
        ),
        (
            "rules:\n- id: a\n  watch: {features: [index: 1]}\n  when: {if: {feature: {label: x}, above: 1}}",
            7,
            "rules[0]",
            "watch: takes no `when`",
        ),
        (
            "rules:\n- id: a\n  refuse: {message: m}\n  when: {if: {feature: {index: 1}, above: 1}}",
            7,
            "rules[0]",
            "refuse: needs a condition `over: prompt`",
        ),
        (
            f"rules:\n- id: a\n  reason: {'x' * 501}\n  watch: {{features: [{{index: 1}}]}}",
            8,
            "rules[0].reason",
            "must have at most 500 characters, not 501",
        ),
        (
            "protect:\n- {id: a, features: [{indices: [1, 1]}]}",
            7,
            "protect[0].features[0]",
            "stands there twice",
        ),
        ("rules:\n- id: a", 7, "rules[0]", "give exactly one action of ban, clamp"),
        ("rules:\n- id: a\n  stop: {x: 1}", 8, "rules[0].stop.x", "there is no key 'x' here; there is none"),
        ("rules:\n- id: a\n  stop: now", 8, "rules[0].stop", "must be a map of no keys: write {}; not 'now'"),
        (
            "rules:\n- id: a\n  ban:\n    features:\n    - {index: '3'}",
            10,
            "rules[0].ban.features[0].index",
            "must be a whole number, not '3'; numbers are decimal",
        ),
        (
            "rules:\n- id: a\n  ban: {directions: [{file: directions/../x.safetensors}]}",
            8,
            "rules[0].ban.directions[0].file",
            "must be directions/NAME.safetensors",
        ),
        (
            "rules:\n- id: a\n  ban: {directions: [{digest: '0f'}]}",
            8,
            "rules[0].ban.directions[0].digest",
            "must be 64 of 0-9 and a-f",
        ),
        (
            "rules:\n- id: a\n  ban: {directions: [{site: layers.1}]}",
            8,
            "rules[0].ban.directions[0]",
            "give one of file and digest",
        ),
        (
            f"rules:\n- id: a\n  ban: {{directions: [{{digest: '{'0' * 64}', tensor: v}}]}}",
            8,
            "rules[0].ban.directions[0]",
            "tensor: names one of a file, and there is no file",
        ),
        (
            "rules:\n- id: a\n  ban: {features: [{where: {}}]}",
            8,
            "rules[0].ban.features[0].where",
            "give at least one of harmful, subject, language and min_precision",
        ),
        (
            "rules:\n- id: a\n  redirect:\n    features: [{index: 1}]\n    factor: 1\n    to: {}",
            11,
            "rules[0].redirect.to",
            "give one of feature and direction",
        ),
        (
            "rules:\n- id: a\n  redirect: {features: [{index: 1}], factor: 1, to: {feature: {indices: [2]}}}",
            8,
            "rules[0].redirect",
            "to: a redirect writes one feature, named by index or label",
        ),
        (
            "rules:\n- id: a\n  redirect: {features: [{index: 1}], factor: 1, to: {feature: {index: 2}},\n"
            "   unit: norm_fraction}",
            9,
            "rules[0].redirect.unit",
            "must be feature or max_activation, not 'norm_fraction'",
        ),
        (
            "rules:\n- id: a\n  redirect: {features: [{index: 1}], factor: 1, to: {feature: {index: 2}},\n"
            "   threshold: -1}",
            9,
            "rules[0].redirect.threshold",
            "must be greater than or equal to 0, not -1",
        ),
        (
            "protect:\n- {id: a, features: [{index: 1}]}\n- {features: [{index: 2}],\n   id: a}",
            9,
            "protect[1].id",
            "two entries have the id 'a'",
        ),
        ("allow:\n- {id: a, ops: [clmp]}", 7, "allow[0].ops[0]", "did you mean clamp?"),
        ("allow:\n- {id: a, ops: [clamp], min: 2, max: 1}", 7, "allow[0]", "min: is above max"),
    ],
)
def test_a_fault_is_told_at_its_line_and_key(text: str, line: int, path: str, told: str) -> None:
    (problem,) = problems(HEAD + text + "\n")
    assert (problem.line, problem.path, told in problem.message) == (line, path, True), str(problem)


@pytest.mark.parametrize(
    ("expression", "path", "told"),
    [
        ("{feature: {index: 1}, abov: 2}", ".abov", "there is no key 'abov' here; did you mean 'above'?"),
        ("{al: []}", ".al", "did you mean 'all'?"),
        ("{all: []}", ".all", "must have at least an entry"),
        ("{not: [1]}", ".not", "must be a map of feature, direction, above, below, unit, all, any, not"),
        ("{any: [{not: {all: [{feature: {index: -1}, above: 1}]}}]}",
         ".any[0].not.all[0].feature.index", "must be greater than or equal to 0"),
        ("{feature: {index: 1}, above: 1, unit: norm_fraction}", ".unit", "feature or max_activation"),
        ("{feature: {index: 1}}", "", "give one of above and below"),
        ("{all: [{feature: {index: 1}, above: 1}], any: []}", ".any", "there is no key 'any' here"),
        ("{all: [{feature: {indices: [1, 2]}, above: 1}]}", ".all[0]", "a condition reads one feature"),
        ("[]", "", "must be a map of"),
    ],
)  # fmt: skip
def test_a_fault_in_a_condition_is_about_the_kind_that_was_meant(
    expression: str, path: str, told: str
) -> None:
    (problem,) = problems(f"{HEAD}rules:\n- id: a\n  stop: {{}}\n  when:\n    if: {expression}\n")
    assert (problem.line, problem.path) == (10, f"rules[0].when.if{path}")
    assert told in problem.message, str(problem)


@pytest.mark.parametrize(
    ("entry", "path", "told"),
    [
        ("uses: [txt]", "uses[0]", "inspect or unruled, not 'txt'; did you mean text?"),
        ("uses: []", "uses", "must have at least an entry"),
        ("uses: [text], ops: [clamp]", "", "give either ops, for edits and watches, or uses"),
        ("max: 2", "", "give either ops, for edits and watches, or uses"),
        ("uses: [n], min: 2", "", "min: is for ops; uses have at most a max"),
        ("uses: [text], directions: true", "", "directions: is for ops"),
        ("uses: [n, text], max: 4", "", "max: bounds n, temperature, pictures only"),
        ("uses: [n], max: 0.5", "", "max: up to 1 needs no allowance"),
        ("ops: [watch], max: 3", "", "a watch has no value"),
    ],
)  # fmt: skip
def test_an_allowance_is_of_edits_or_of_uses(entry: str, path: str, told: str) -> None:
    (problem,) = problems(f"{HEAD}allow:\n- {{id: a, {entry}}}\n")
    assert problem.path == f"allow[0]{f'.{path}' if path else ''}"
    assert told in problem.message, str(problem)


def test_when_text_is_told_and_what_is_done_at_the_first_token() -> None:
    found = policy(f"{HEAD}told: judged\nfirst_token: {{conditions: true}}\n")
    assert (found.told, found.first_token.conditions, found.first_token.rows) == ("judged", True, False)
    assert (policy(HEAD).told, policy(HEAD).first_token.conditions) == ("at_once", False)
    assert [
        policy(f"{HEAD}{told}").held_back for told in ("", "told: judged\n", "told: judged\nhold: 16\n")
    ] == [
        0,
        1,
        17,
    ]
    (problem,) = problems(f"{HEAD}hold: 16\n")
    assert "hold: give it with `told: judged`, and only there" in problem.message
    (problem,) = problems(f"{HEAD}told: judged\nhold: 1025\n")
    assert problem.path == "hold"
    (problem,) = problems(f"{HEAD}told: later\n")
    assert problem.message == "must be at_once or judged, not 'later'"


def test_all_faults_are_told_at_once_in_order() -> None:
    text = (
        POLICY.replace("index: 7", "index: x")
        .replace("window: 8", "windw: 8")
        .replace("serial: 3", "serial: 0")
    )
    found = problems(text + "extra: 1\n")
    assert [problem.path for problem in found] == [
        "serial",
        "rules[0].ban.features[0].index",
        "rules[1].when.windw",
        "extra",
    ]
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_cases_with_one_name_or_without_a_target_are_faults() -> None:
    (twice,) = problems(CASES.replace("another tenant", "no edits"), Cases)
    assert (twice.line, twice.path) == (7, "cases[1].name")
    assert "two cases have the name 'no edits'" in twice.message
    (reading,) = problems(CASES.replace("{tenant: acme}", "{readings: [{prompt: [1]}]}"), Cases)
    assert reading.path == "cases[0].request.readings[0]"
    written = "{readings: [{feature: {index: 7}, prompt: [0, 1.5]}]}"
    Cases.model_validate(read_yaml(CASES.replace("{tenant: acme}", written).encode(), "f.yaml").value)
    edit = "{edits: [{op: clamp, value: 1}, {op: ban, feature: {index: 1}}]}"
    (none,) = problems(CASES.replace("{tenant: acme}", edit), Cases)
    assert (none.path, none.message) == ("cases[0].request.edits[0]", "give one of feature and direction")


EXPRESSIONS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries(
        {"feature": st.fixed_dictionaries({"index": st.integers(0, 9)})},
        optional={},
    ).flatmap(lambda reading: st.floats(-5, 5).map(lambda bound: {**reading, "above": bound})),
    lambda inner: (
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3))
        | st.builds(lambda part: {"not": part}, inner)
    ),
    max_leaves=8,
)


def dumped(expression: Expression) -> dict[str, Any]:
    """The expression as it was written, by a walk of our own."""
    if isinstance(expression, All):
        return {"all": [dumped(part) for part in expression.all]}
    if isinstance(expression, Any_):
        return {"any": [dumped(part) for part in expression.any]}
    if isinstance(expression, Not):
        return {"not": dumped(expression.not_)}
    assert expression.feature is not None
    return {"feature": {"index": expression.feature.index}, "above": expression.above}


@settings(max_examples=sized(100, 30), deadline=None)
@given(EXPRESSIONS)
def test_any_tree_of_conditions_is_read_as_it_was_written(tree: dict[str, Any]) -> None:
    assert dumped(When.model_validate({"if": tree}).if_) == tree
    # A made expression may take the place of a written one.
    made = When.model_validate({"if": tree}).if_
    assert When.model_validate({"if": {"not": made}}).if_ == When.model_validate({"if": {"not": tree}}).if_


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), unique=True, max_size=3))
def test_a_rule_has_exactly_one_action(actions: list[str]) -> None:
    targets = {"features": [{"index": 1}]}
    bodies: dict[str, dict[str, Any]] = {
        "ban": targets,
        "clamp": {**targets, "value": 1},
        "cap": {**targets, "value": 1},
        "floor": {**targets, "value": 1},
        "scale": {**targets, "factor": 0.5},
        "redirect": {**targets, "factor": 0.5, "to": {"feature": {"index": 2}}},
        "watch": targets,
        "refuse": {"message": "no"},
    }
    when = {"if": {"feature": {"index": 1}, "above": 0}, "over": "prompt"}
    rule = {"id": "a", **{action: bodies.get(action, {}) for action in actions}}
    if actions != ["watch"]:
        rule["when"] = when
    document = {"apiVersion": "saegis.dev/v1", "kind": "PolicyPart", "rules": [rule]}
    if len(actions) == 1:
        assert Part.model_validate(document).rules[0].action == actions[0]
    else:
        with pytest.raises(ValidationError, match="exactly one action"):
            Part.model_validate(document)


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container with every key or index of it."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, each in entries:
        found.append((value, key))
        _places(each, found)
    return found


WRONG: tuple[Any, ...] = (None, "", "x", -1, 0.5, 1e9, True, [], {}, [1], {"x": 1}, "no", float("nan"), 2**70)


@settings(max_examples=sized(300, 60), deadline=None)
@given(st.sampled_from(((POLICY, Policy), (PART, Part), (CASES, Cases))), st.integers(0, 2**32))
def test_mutated_documents_are_read_or_refused_with_file_line_and_key(
    subject: tuple[str, type[Policy | Part | Cases]], seed: int
) -> None:
    text, model = subject
    draw = random.Random(seed)
    value = copy.deepcopy(yaml.safe_load(text))
    for _ in range(draw.randrange(1, 4)):
        container, key = draw.choice(_places(value, []))
        choice = draw.randrange(4)
        if choice == 0:
            del container[key]
        elif choice == 1 and isinstance(container, dict):
            container[f"{key}x"] = container.pop(key)
        elif choice == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            # A copy: what is changed next may lie inside it, and must not change what is drawn later.
            container[key] = copy.deepcopy(draw.choice(WRONG))
        if not value:
            break
    written = yaml.safe_dump(value, allow_unicode=True, sort_keys=False)
    found: tuple[Problem, ...] = ()
    try:
        validated(model, read_yaml(written.encode(), "f.yaml"), "f.yaml")
    except BundleError as error:
        found = error.problems
        assert found
    last = written.count("\n") + 1
    for problem in found:
        assert problem.file == "f.yaml"
        assert 1 <= problem.line <= last
        assert problem.message
        assert "<" not in problem.path
        assert "Input should" not in problem.message
