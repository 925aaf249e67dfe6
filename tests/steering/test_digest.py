"""Digests: programs and guards that differ in anything have different ones, and equal ones the same."""

import copy
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.engine.api import UNGUARDED, Guard, Guarded, Reaction
from saegis_server.steering import rows
from saegis_server.steering.conditions import AllOf, AnyOf, Condition, Expression, Literal, Negation, Scope
from saegis_server.steering.digest import digest_of
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringProgram
from saegis_server.steering.rows import Edit, Norm, Phase, Probe
from saegis_server.steering.site import Place, Site

_numbers = st.floats(-100.0, 100.0, width=32)
_vectors = st.lists(_numbers, min_size=3, max_size=3).map(torch.tensor)
_probes = st.builds(
    Probe,
    key=st.integers(0, 10**6).map(lambda feature: f"sae:{'ab' * 32}:{feature}"),
    read=_vectors,
    write=_vectors,
    gate_bias=_numbers,
    threshold=_numbers,
    gain=st.floats(0.5, 2.0),
    value_bias=_numbers,
    linear=st.booleans(),
)
_edits = st.builds(
    Edit,
    _probes,
    a=_numbers,
    b=_numbers,
    lo=st.floats(-100.0, 0.0),
    hi=st.floats(0.0, 100.0),
    above=st.sampled_from((-rows.INFINITY, 0.0, 1.5)),
    relative_to_norm=st.booleans(),
    phase=st.sampled_from(Phase),
)
_bans = st.builds(rows.ban, _probes, st.floats(0.0, 10.0), phase=st.sampled_from(Phase))
_sites = st.builds(
    SiteProgram,
    edits=st.lists(_edits, max_size=2, unique_by=lambda edit: edit.probe.key).map(tuple),
    rules=st.lists(_edits, max_size=2).map(tuple),
    bans=st.lists(_bans, max_size=2).map(tuple),
    watches=st.lists(_probes, max_size=2).map(tuple),
    guards=st.lists(_probes, max_size=2).map(tuple),
    max_relative_norm=st.none() | st.floats(0.0, 1.0),
)
_by_site = st.dictionaries(
    st.sampled_from([Site(layer, Place.RESID_POST) for layer in (0, 2, 10)]), _sites, max_size=2
)
_programs = st.builds(SteeringProgram, _by_site, st.booleans())
_literals = st.builds(Literal, st.integers(0, 7), _numbers, st.booleans())


def _joined(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=1, max_size=2).map(tuple)
    return several.map(AllOf) | several.map(AnyOf) | parts.map(Negation)


_expressions: st.SearchStrategy[Expression] = st.recursive(_literals, _joined, max_leaves=4)
_conditions = st.builds(
    Condition, _expressions, st.just(Scope.WINDOW), st.integers(2, 9), st.booleans()
) | st.builds(Condition, _expressions, st.sampled_from([Scope.TOKEN, Scope.PROMPT, Scope.ANSWER]), st.just(1))
_guarded = st.builds(
    Guarded, st.text(max_size=3), _conditions, st.sampled_from(Reaction), st.text(max_size=3), _by_site
)
_guards = st.builds(Guard, st.lists(_guarded, max_size=2).map(tuple), st.booleans(), st.booleans())


def _others(value: Any) -> Iterator[Any]:
    """What one change in one place makes of a value: another number, word or tensor, a part less."""
    match value:
        case Enum():
            yield from (other for other in type(value) if other is not value)
        case bool():
            yield not value
        case int():
            yield value + 1
        case float():
            yield value + 0.5
        case str():
            yield value + "x"
        case None:
            yield 0.25
        case Tensor():
            for place in range(len(value)):
                yield torch.cat((value[:place], value[place : place + 1] + 0.5, value[place + 1 :]))
        case tuple():
            yield value[1:]
            for place, part in enumerate(value):
                yield from ((*value[:place], other, *value[place + 1 :]) for other in _others(part))
        case dict():
            for key, part in value.items():
                yield {name: kept for name, kept in value.items() if name != key}
                yield {replace(name, layer=7) if name == key else name: kept for name, kept in value.items()}
                yield from ({**value, key: other} for other in _others(part))
        case _ if is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                for other in _others(getattr(value, field.name)):
                    with suppress(ValueError):  # No such program can be.
                        yield replace(value, **{field.name: other})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_programs, _guards, st.randoms(use_true_random=False))
def test_whatever_is_changed_changes_the_digest(
    program: SteeringProgram, guard: Guard, chance: random.Random
) -> None:
    own, known = guard.digest_beside(program), {repr(program), repr(guard)}
    others = [(other, guard) for other in _others(program)] + [(program, other) for other in _others(guard)]
    for changed, beside in chance.sample(others, min(20, len(others))):
        if not {repr(changed), repr(beside)} <= known:
            assert beside.digest_beside(changed) != own


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_programs, _guards)
def test_equal_ones_have_one_digest(program: SteeringProgram, guard: Guard) -> None:
    turned = replace(program, sites=dict(reversed(list(program.sites.items()))))
    for again in (copy.deepcopy(program), turned):
        assert copy.deepcopy(guard).digest_beside(again) == guard.digest_beside(program)


def test_an_unguarded_program_is_named_by_its_own_digest() -> None:
    assert UNGUARDED.digest_beside(UNSTEERED) == UNSTEERED.digest
    assert Guard(hold_back=1).digest_beside(UNSTEERED) != UNSTEERED.digest


def test_numbers_that_are_equal_count_as_equal() -> None:
    assert digest_of((2, -0.0, True)) == digest_of((2.0, 0.0, 1))
    assert digest_of(("ab", "c")) != digest_of(("a", "bc"))
    assert digest_of(((1,), 2)) != digest_of(((1, 2),))
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    sites = [Site(layer, Place.RESID_POST) for layer in (2, 10)]
    assert digest_of(dict.fromkeys(sites, 1)) == digest_of(dict.fromkeys(map(str, sites), 1))
    assert digest_of((AllOf((Literal(0, 1.0),)),)) != digest_of((AnyOf((Literal(0, 1.0),)),))
    with pytest.raises(TypeError, match="set has no digest"):
        digest_of({1})


def test_the_keys_of_features_and_directions_are_whole() -> None:
    """Cut to 64 bits, two directions of one key can be made by trying."""
    assert len(Probe.direction(torch.ones(4)).key.removeprefix("direction:")) == 64
    assert Probe.direction(torch.ones(4)).name == Probe.direction(torch.ones(4)).key[: len("direction:") + 16]
    assert Probe(f"sae:{'ab' * 32}:7", torch.ones(4), torch.ones(4)).name == f"sae:{'ab' * 8}:7"


_ELSEWHERE = """
import torch
from saegis_server.engine.api import Guard, Guarded, Reaction
from saegis_server.steering import rows
from saegis_server.steering.conditions import AllOf, Condition, Literal, Scope
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Norm, Phase, Probe
from saegis_server.steering.site import Place, Site

a, b = Site(2, Place.MLP_OUT), Site(10, Place.RESID_PRE)
probe = Probe("sae:ab:1", torch.ones(4), torch.arange(4.0), gain=2.0, norm=Norm.LAYER_NORM)
site = SiteProgram(edits=(rows.clamp(probe, 2.0, phase=Phase.PROMPT),), guards=(probe,))
condition = Condition(AllOf((Literal(0, 0.5),)), Scope.WINDOW, 4)
guard = Guard((Guarded("p/r", condition, Reaction.STOP, rows={b: site, a: site}),))
digest = guard.digest_beside(SteeringProgram({b: site, a: site}))
"""


def test_the_digest_is_the_same_in_every_process() -> None:
    here: dict[str, Any] = {}
    exec(_ELSEWHERE, here)  # noqa: S102 - the same lines here and there
    command = [sys.executable, "-c", f"{_ELSEWHERE}\nprint(digest)"]
    there = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "1"}, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here["digest"]


def test_every_norm_counts() -> None:
    probe = Probe("sae:ab:1", torch.ones(4), torch.ones(4))
    assert len({replace(probe, norm=norm).digest for norm in Norm}) == len(Norm)
