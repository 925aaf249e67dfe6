"""Programs: digests, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saegis_server.steering import rows
from saegis_server.steering.program import UNSTEERED, SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.rows import Edit, Phase, Probe
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity
from tests.steering import cases


def probe(key: str = "sae:1") -> Probe:
    return Probe(key, torch.ones(4), torch.ones(4))


def program(*edits: Edit) -> SteeringProgram:
    return SteeringProgram({cases.SITE: SiteProgram(edits=edits)})


def test_the_digest_names_the_effective_steering() -> None:
    one = program(rows.clamp(probe(), 2.0))
    assert one.digest == program(rows.clamp(probe(), 2.0)).digest
    others = [
        UNSTEERED,
        program(rows.clamp(probe(), 2.5)),
        program(rows.clamp(probe("sae:2"), 2.0)),
        program(rows.clamp(probe(), 2.0, phase=Phase.PROMPT)),
        program(rows.clamp(probe(), 2.0, relative=True)),
        SteeringProgram({Site.parse("layers.1"): SiteProgram(edits=(rows.clamp(probe(), 2.0),))}),
        SteeringProgram({cases.SITE: SiteProgram(rules=(rows.clamp(probe(), 2.0),))}),
        SteeringProgram({cases.SITE: SiteProgram((rows.clamp(probe(), 2.0),), watches=(probe("other"),))}),
        SteeringProgram({cases.SITE: SiteProgram((rows.clamp(probe(), 2.0),), guards=(probe("other"),))}),
        SteeringProgram({cases.SITE: SiteProgram((rows.clamp(probe(), 2.0),), max_relative_norm=0.5)}),
        SteeringProgram({cases.SITE: SiteProgram((rows.clamp(probe(), 2.0),), max_relative_norm=0.6)}),
    ]
    digests = {one.digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)


@given(st.sampled_from([math.nan, math.inf, -math.inf, 1.1e6, -1e30]))
def test_absurd_values_are_refused(value: float) -> None:
    for edit in (rows.clamp(probe(), value), rows.add(probe(), value), rows.scale(probe(), value)):
        with pytest.raises(SteeringError) as error:
            program(rows.add(probe("other"), 1.0), edit)
        assert error.value.rows == (("edits", 1),)
        assert error.value.site == cases.SITE


def test_contradicting_edits_are_refused() -> None:
    with pytest.raises(SteeringError, match="contradict") as error:
        program(rows.clamp(probe(), 1.0), rows.add(probe("other"), 1.0), rows.scale(probe(), 0.0))
    assert error.value.rows == (("edits", 0), ("edits", 2))
    with pytest.raises(SteeringError, match="contradict"):
        program(rows.cap(probe(), 1.0), rows.floor(probe(), 2.0))


def test_edits_that_leave_room_for_each_other_are_allowed() -> None:
    program(rows.cap(probe(), 2.0), rows.floor(probe(), 1.0))
    program(rows.clamp(probe(), 1.0, phase=Phase.PROMPT), rows.clamp(probe(), 3.0, phase=Phase.COMPLETION))


def test_more_rows_than_there_is_room_for_are_refused() -> None:
    crowded = SiteProgram(edits=tuple(rows.add(probe(f"sae:{index}"), 1.0) for index in range(5)))
    with pytest.raises(SteeringError, match="room for 4"):
        Capacity(edits=4).check(cases.SITE, crowded)


def test_watches_and_guards_share_their_room() -> None:
    read = tuple(probe(f"sae:{index}") for index in range(5))
    Capacity(watches=10).check(cases.SITE, SiteProgram(watches=read, guards=read))
    with pytest.raises(SteeringError, match=r"5 watches and 5 guards at .*; .* room for 9") as error:
        Capacity(watches=9).check(cases.SITE, SiteProgram(watches=read, guards=read))
    assert error.value.rows == (("guards", 4),)


@pytest.mark.parametrize("bound", [-0.1, math.nan, math.inf])
def test_a_bound_must_be_a_share(bound: float) -> None:
    with pytest.raises(SteeringError, match="max_relative_norm"):
        SteeringProgram({cases.SITE: SiteProgram(max_relative_norm=bound)})


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_direction_must_point_somewhere(values: list[float]) -> None:
    with pytest.raises(ValueError, match="direction"):
        Probe.direction(torch.tensor(values))
