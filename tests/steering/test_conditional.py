"""Rows with a condition: while it holds they act as any row, and else they are as if they were not there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringError
from saegis_server.steering.projection import held_geometry
from saegis_server.steering.rows import Edit, Probe
from tests.steering import cases, reference
from tests.steering.test_apply import ALL_NORMS, random_program

WIDTH = 24
CONDITIONS = 3


def among(program: SiteProgram, held: set[int]) -> SiteProgram:
    """The program without the rows whose condition does not hold."""
    rules, bans = (
        tuple(replace(row, when=0) for row in stage if row.when in held)
        for stage in (program.rules, program.bans)
    )
    return replace(program, rules=rules, bans=bans)


def applied(program: SiteProgram, x: torch.Tensor, held: set[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The activations [T, d] steered, and how many bans fired, while conditions hold."""
    on = torch.tensor([[[place in held or place == 0 for place in range(CONDITIONS + 1)]]])
    on = on.expand(1, len(x), -1)
    view, prompt = cases.view(cases.table_of([program], x.shape[-1])), torch.ones(1, len(x))
    result, readings = cases.applied(x[None], view, prompt, ALL_NORMS, on)
    return result[0], readings.bans_fired[0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(0, 4), st.integers(0, 8), st.integers(0, 6), st.just(2)),
    held=st.sets(st.integers(1, CONDITIONS)),
)
def test_what_acts_is_what_the_loop_does_with_the_rows_whose_condition_holds(
    seed: int, shape: tuple[int, int, int, int], held: set[int]
) -> None:
    rng = torch.Generator().manual_seed(seed)
    program = random_program(rng, shape)

    def conditional(stage: tuple[Edit, ...]) -> tuple[Edit, ...]:
        return tuple(replace(row, when=(seed + place) % (CONDITIONS + 1)) for place, row in enumerate(stage))

    program = replace(program, rules=conditional(program.rules), bans=conditional(program.bans))
    alone = among(program, {0, *held})
    x = cases.activations(rng, 6, WIDTH)
    result, _ = applied(program, x, held)
    for token, got in zip(x, result, strict=True):
        clean, found = reference.vector(token), reference.vector(got)
        edited, pushed = reference.steer(alone, clean, True, program)
        allowed = reference.half_spaces(alone, clean, edited, True)
        nearest = reference.nearest_allowed(allowed, pushed) if allowed else pushed
        scale = 1.0 + max(np.abs(each).max() for each in (edited, pushed, nearest, clean))
        if (nearest == pushed).all():
            assert np.abs(found - pushed).max() <= 2e-5 * scale
        else:
            assert (reference.excess(allowed, found) <= 2e-5 * scale).all()
            least = np.linalg.norm(nearest - pushed)
            assert np.linalg.norm(found - pushed) <= 1.3 * least + 1e-4 * scale


FEATURE = Probe("f", 0.7 * torch.eye(WIDTH)[0] + 0.2 * torch.eye(WIDTH)[1], torch.eye(WIDTH)[0])


def value(x: torch.Tensor) -> list[float]:
    """What the feature reads at each token."""
    return [reference.read(FEATURE, reference.vector(token)) for token in x]


def test_a_ban_silences_a_floor_of_its_feature_while_its_condition_holds() -> None:
    floor, ban = rows.floor(FEATURE, 2.0), replace(rows.ban(FEATURE, 1.0), when=1)
    x = cases.activations(torch.Generator().manual_seed(1), 40, WIDTH)
    program = SiteProgram(rules=(floor,), bans=(ban,))
    free, fired = applied(program, x, set())
    assert min(value(free)) >= 2.0 - 1e-4
    assert not fired.any()
    banned, fired = applied(program, x, {1})
    assert max(value(banned)) == 0.0
    assert fired.any()
    always = SiteProgram(rules=(replace(floor, when=2),), bans=(replace(ban, when=0),))
    assert max(value(applied(always, x, {2})[0])) == 0.0


def test_bounds_of_one_feature_under_two_conditions_both_hold() -> None:
    program = SiteProgram(
        rules=(replace(rows.cap(FEATURE, 1.0), when=1), replace(rows.floor(FEATURE, 0.5), when=2))
    )
    x = cases.activations(torch.Generator().manual_seed(2), 40, WIDTH)
    low, high = {0: min(value(x)), 1: 0.0}, max(value(x))
    assert low[0] < 0.5 < 1.0 < high
    found = {tuple(held): value(applied(program, x, held)[0]) for held in (set(), {1}, {2}, {1, 2})}
    assert found[()] == value(x)
    assert max(found[(1,)]) <= 1.0 + 1e-4
    assert min(found[(1,)]) < 0.5
    assert min(found[(2,)]) >= 0.5 - 1e-4
    assert max(found[(2,)]) > 1.0
    assert all(0.5 - 1e-4 <= each <= 1.0 + 1e-4 for each in found[(1, 2)])


@pytest.mark.parametrize("stage", ["rules", "bans"])
def test_a_row_whose_condition_does_not_hold_leaves_every_bit(stage: str) -> None:
    row = rows.clamp(FEATURE, 3.0) if stage == "rules" else rows.ban(FEATURE, 2.0)
    x = cases.activations(torch.Generator().manual_seed(3), 40, WIDTH)
    own = (replace(row, when=2),)
    program = SiteProgram(rules=own) if stage == "rules" else SiteProgram(bans=own)
    assert torch.equal(applied(program, x, {1, 3})[0], x)
    assert not torch.equal(applied(program, x, {2})[0], x)


def test_what_cannot_be_held_under_every_condition_is_refused() -> None:
    cap, floor = replace(rows.cap(FEATURE, 1.0), when=1), replace(rows.floor(FEATURE, 2.0), when=2)
    with pytest.raises(SteeringError, match="leave no value between them"):
        held_geometry(SiteProgram(rules=(cap, floor)), None)
    bans = tuple(replace(rows.ban(FEATURE), when=when) for when in (1, 2))
    with pytest.raises(SteeringError, match="more than one condition"):
        held_geometry(SiteProgram(rules=(rows.floor(FEATURE, 1.0),), bans=bans), None)
    assert held_geometry(SiteProgram(rules=(rows.cap(FEATURE, 1.0),), bans=bans), None) is not None
