"""The room that a server is given for the rows and readings of a bundle."""

from dataclasses import replace

import pytest

from saegis_lab.evaluation.bundle_features import room_for, room_taken
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.compiled import compile_policy
from saegis_server.policy.errors import CompileError
from saegis_server.steering.table import Capacity
from tests.evaluation.bundles import BAN
from tests.evaluation.bundles import bundle as evaluated
from tests.policy.policies import WORLD, bundle

REDIRECT = (
    "redirect: {{features: [{{sae: first, indices: {}}}], to: {{feature: {{sae: first, index: 47}}}}, "
    "factor: 2, threshold: {}, phase: {}}}"
)


def reading(index: int, above: float = 1) -> str:
    return f"{{feature: {{sae: first, index: {index}}}, above: {above}}}"


def of_every_kind() -> Bundle:
    """A policy with rules that share rows and readings, and rules that do not."""
    inner = f"{{not: {{all: [{reading(1)}, {reading(2)}]}}}}"
    many = ", ".join(map(reading, range(20)))
    return bundle(f"""
        rules:
        - {{id: asked, {REDIRECT.format([1, 2, 3], 1, "prompt")}}}
        - {{id: told, {REDIRECT.format([1, 2, 3, 4], 2, "completion")}}}
        - {{id: banned, ban: {{features: [{{sae: first, indices: [1, 2, 3]}}]}}}}
        - {{id: again, ban: {{features: [{{sae: first, indices: [3, 6]}}], strength: 2}}}}
        - id: sometimes
          when: {{if: {reading(3)}, over: window, window: 3}}
          ban: {{features: [{{sae: first, indices: [8, 9]}}]}}
        - {{id: ends, when: {{if: {{any: [{many}, {inner}]}}, over: prompt}}, stop: {{}}}}
        - {{id: cuts, when: {{if: {{any: [{reading(3)}, {reading(3, 2)}]}}, over: answer}}, stop: {{}}}}
        - {{id: counts, when: {{if: {reading(3)}, over: token}}, record: {{}}}}
    """)


def test_there_is_never_less_room_than_a_server_starts_with() -> None:
    room = room_for(evaluated({"a": BAN}).policy)
    assert room == {"rules": 32, "bans": 32, "watches": 64, "conditions": 32}


def test_more_is_asked_for_where_more_is_taken() -> None:
    indices = list(range(40))
    policy = bundle(f"rules: [{{id: a, ban: {{features: [{{sae: first, indices: {indices}}}]}}}}]").policy
    assert room_for(policy) == {"rules": 32, "bans": 40, "watches": 64, "conditions": 32}


def test_a_server_has_no_use_for_more_and_cannot_do_with_less() -> None:
    source = of_every_kind()
    room = room_taken(source.policy)
    assert room == {"rules": 7, "bans": 6, "watches": 20, "conditions": 6}
    compile_policy(source, replace(WORLD, capacity=Capacity(**room)))
    for kind, count in room.items():
        with pytest.raises(CompileError, match=f"room for .*--rows {kind}={count}"):
            compile_policy(source, replace(WORLD, capacity=Capacity(**(room | {kind: count - 1}))))
