"""Reach: a policy that can match nothing here is refused or warned of, and so is a name that looks alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from saegis_server.policy.decide.world import Callers
from saegis_server.policy.errors import Unmatched, UnmatchedError
from saegis_server.policy.store.checking import Checker
from tests.policy.policies import WORLD, bundle
from tests.rpc import tiny

CALLERS = Callers(
    frozenset(
        (
            ("acme", frozenset(("use",))),
            ("ops", frozenset(("use", "administer"))),
            ("team-1", frozenset(("use",))),
        )
    )
)
HERE = replace(WORLD, callers=lambda: CALLERS)


def match(written: str) -> str:
    return f"match:\n  {written}\n"


@pytest.mark.parametrize(
    ("written", "path", "told"),
    [
        (
            "models: [my-model]",
            "match.models[0]",
            "'my-model' is not the model of this server: there is tiny",
        ),
        ("models: [Tiny]", "match.models[0]", "did you mean 'tiny'?"),
        ("models: [tiny, TINY]", "match.models[1]", "did you mean 'tiny'?"),
        ("tenants: [other]", "match.tenants[0]", "there is acme, ops, team-1"),
        ("tenants: [acme, Acme]", "match.tenants[1]", "did you mean 'acme'?"),
        ("tenants: [acme, 'ops ']", "match.tenants[1]", "did you mean 'ops'?"),
        ('tenants: ["\u0430cme", ops]', "match.tenants[0]", "did you mean 'acme'?"),
        ('tenants: ["ac\u200bme", ops]', "match.tenants[0]", "did you mean 'acme'?"),
        ("tenants: [\uff41cme, ops]", "match.tenants[0]", "did you mean 'acme'?"),
        ("tenants: [team-l, ops]", "match.tenants[0]", "did you mean 'team-1'?"),
        ("roles: [admin]", "match.roles[0]", "did you mean 'administer'?"),
        (
            "{tenants: [acme], roles: [administer]}",
            "match",
            "has one of these tenants and one of these roles",
        ),
    ],
)
def test_what_can_match_nothing_is_refused_with_its_line(written: str, path: str, told: str) -> None:
    source = bundle(match(written))
    with pytest.raises(UnmatchedError) as caught:
        Checker(HERE).check(source)
    (problem,) = caught.value.problems
    assert (problem.path, problem.file) == (path, "policy.yaml")
    assert problem.line in (6, 7)
    assert told in problem.message
    warned = Checker(HERE, unmatched=Unmatched.WARN).check(source)
    assert warned.warnings == (problem,)
    examined = Checker(HERE).examine(source, None)
    assert examined.problems == (problem,)


@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "models: [tiny]",
        "models: [tiny, '*']",
        "tenants: ['*', nobody]",
        "{tenants: [ops], roles: [administer, use]}",
        "{tenants: ['*'], roles: [administer]}",
    ],
)
def test_what_matches_somebody_is_taken(written: str) -> None:
    assert Checker(HERE).check(bundle(match(written))).warnings == ()


def test_a_stray_name_beside_others_is_a_warning() -> None:
    found = Checker(HERE).check(bundle(match("{tenants: [acme, globex], models: [large, tiny]}")))
    assert [each.path for each in found.warnings] == ["match.models[0]", "match.tenants[1]"]


def test_only_what_is_known_is_judged() -> None:
    nowhere = bundle(match("{tenants: [globex], models: [large]}"))
    assert Checker(replace(WORLD, named=False)).check(nowhere).warnings == ()
    examined = Checker(HERE).examine(nowhere, None, tells_callers=False)
    assert [each.path for each in examined.problems] == ["match.models[0]"]


WATCHED = """
rules: [{id: no, ban: {features: [{sae: first, index: 3}]}}]
allow: [{id: see, ops: [watch, ban], ENTRY}]
"""


@pytest.mark.parametrize(
    ("transparency", "entry", "warned"),
    [
        ("steered", "features: [{sae: first, index: 3}]", True),
        ("steered", "sites: [layers.0]", True),
        ("steered", "features: [], directions: true", True),
        ("steered", "features: [{sae: first, index: 4}]", False),
        ("steered", "sites: [layers.1], directions: true", False),
        ("labels", "directions: true", False),
    ],
)
def test_an_allowance_that_tells_what_is_concealed_is_warned_of(
    transparency: str, entry: str, warned: bool
) -> None:
    found = Checker(HERE).check(bundle(f"transparency: {transparency}\n{WATCHED.replace('ENTRY', entry)}"))
    assert [(each.path, each.line) for each in found.warnings] == ([("allow.see", 9)] if warned else [])
    edits = WATCHED.replace("ENTRY", entry).replace("watch, ban", "clamp")
    found = Checker(HERE).check(bundle(f"transparency: {transparency}\n{edits}"))
    assert bool(found.warnings) is (warned and "directions" not in entry)


REDIRECTED = """
transparency: steered
rules:
- id: away
  redirect: {features: [{sae: first, index: 3}], to: TO, factor: 1}
allow: [{id: see, ENTRY}]
"""
VECTOR = "{direction: {file: directions/all.safetensors}}"


@pytest.mark.parametrize(
    ("to", "entry", "warned"),
    [
        ("{feature: {sae: first, index: 5}}", "ops: [clamp], features: [{sae: first, index: 3}]", True),
        ("{feature: {sae: first, index: 5}}", "ops: [clamp], features: [{sae: first, index: 5}]", True),
        ("{feature: {sae: first, index: 5}}", "ops: [clamp], features: [{sae: first, index: 6}]", False),
        ("{feature: {sae: first, index: 5}}", "ops: [ban], features: [{sae: first, index: 3}]", False),
        ("{feature: {sae: first, index: 5}}", "ops: [ban], features: [{sae: first, index: 5}]", True),
        ("{feature: {sae: first, index: 5}}", "ops: [watch], features: [{sae: first, index: 5}]", True),
        (VECTOR, "ops: [add], features: [], directions: true", True),
        (VECTOR, "ops: [ban], features: [], directions: true", True),
        (VECTOR, "ops: [watch], features: [{sae: first, index: 6}]", False),
        (VECTOR, "ops: [ban]", False),
    ],
)
def test_what_a_redirect_reads_and_writes_counts_as_ruled(to: str, entry: str, warned: bool) -> None:
    text = REDIRECTED.replace("TO", to).replace("ENTRY", entry)
    directions = {"v": torch.ones(tiny.WIDTH)} if to == VECTOR else None
    found = Checker(HERE).check(bundle(text, directions=directions))
    assert [each.path for each in found.warnings] == (["allow.see"] if warned else [])
