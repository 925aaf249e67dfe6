"""Steering against the float64 loop: random edits, programs and sites."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm
from tests.steering import cases, reference

WIDTH = 24
ALL_NORMS = frozenset(Norm)


def random_program(rng: torch.Generator, shape: tuple[int, int, int, int]) -> SiteProgram:
    """A program with the given numbers of edits, rules, bans and watches; no probe twice."""
    kinds, norms = ("relu", "jumprelu", "gated", "direction"), list(Norm)

    def pick(name: str, norm: Norm | None = None) -> rows.Probe:
        kind = kinds[int(torch.randint(4 if norm in (None, Norm.NONE) else 3, (1,), generator=rng))]
        chosen = norms[int(torch.randint(3, (1,), generator=rng))] if norm is None else norm
        return cases.random_probe(rng, WIDTH, kind, chosen, name)

    def edit(name: str) -> rows.Edit:
        operations = (*cases.OPERATIONS, "redirect")
        operation = operations[int(torch.randint(len(operations), (1,), generator=rng))]
        probe = pick(name)
        if operation == "redirect":
            return cases.random_redirect(rng, probe, pick(f"target of {name}", probe.norm))
        return cases.random_edit(rng, probe, operation)

    def rule(name: str) -> rows.Edit:
        while not cases.may_rule(found := edit(name)):
            pass
        return found

    edits, rules, bans, watches = shape
    return SiteProgram(
        edits=tuple(edit(f"e{index}") for index in range(edits)),
        rules=tuple(rule(f"r{index}") for index in range(rules)),
        bans=cases.correlated_bans(rng, bans, WIDTH, 0.5, 1.5) if bans else (),
        watches=tuple(pick(f"w{index}") for index in range(watches)),
        guards=tuple(pick(f"g{index}") for index in range(watches // 2)),
        max_relative_norm=(None, 0.3, 2.0, 0.0)[int(torch.randint(4, (1,), generator=rng))],
    )


shapes = st.tuples(st.integers(0, 32), st.integers(0, 8), st.integers(0, 6), st.integers(0, 8))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.lists(shapes, min_size=1, max_size=4), tokens=st.integers(1, 4))
def test_agrees_with_the_float64_loop(seed: int, sizes: list[tuple[int, int, int, int]], tokens: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    programs = [random_program(rng, shape) for shape in sizes]
    table = cases.table_of(programs, WIDTH)
    x = cases.activations(rng, len(programs), tokens, WIDTH)
    prompt = torch.rand(len(programs), tokens, generator=rng) < 0.5
    result, readings = cases.applied(x, cases.view(table), prompt, ALL_NORMS)
    for slot, program in enumerate(programs):
        for token in range(tokens):
            clean = reference.vector(x[slot, token])
            in_prompt = bool(prompt[slot, token])
            edited, pushed = reference.steer(program, clean, in_prompt)
            allowed = reference.half_spaces(program, clean, edited, in_prompt)
            nearest = reference.nearest_allowed(allowed, pushed) if allowed else pushed
            scale = 1.0 + max(np.abs(each).max() for each in (edited, pushed, nearest, clean))
            got = reference.vector(result[slot, token])
            if (nearest == pushed).all():
                assert np.abs(got - pushed).max() <= 2e-5 * scale
            else:  # what is held is held; the move may be a little longer than the least one
                assert (reference.excess(allowed, got) <= 2e-5 * scale).all()
                least = np.linalg.norm(nearest - pushed)
                assert np.linalg.norm(got - pushed) <= 1.3 * least + 1e-4 * scale
            watched, guarded = readings.watched_before[slot, token], readings.guarded[slot, token]
            told = zip(program.watches, watched.tolist(), strict=False)
            for probe, value in (*told, *zip(program.guards, guarded.tolist(), strict=False)):
                clean_value = reference.read(probe, clean)
                near = abs(value - clean_value) <= 1e-4 * (1.0 + abs(clean_value))
                assert near or _near_threshold(probe, clean)
            if not program.changes_anything:
                assert torch.equal(result[slot, token], x[slot, token])
                assert not bool(readings.edited[slot, token])


def _near_threshold(probe: rows.Probe, x: reference.Vector) -> bool:
    """Whether float32 and float64 may disagree on the probe being active."""
    values = {reference.read(probe, x * (1.0 + shift)) > 0.0 for shift in (-1e-5, 0.0, 1e-5)}
    return len(values) > 1


def test_a_row_does_not_change_its_neighbours() -> None:
    rng = torch.Generator().manual_seed(3)
    quiet = SiteProgram()
    loud = random_program(rng, (32, 8, 4, 8))
    x = cases.activations(rng, 2, 3, WIDTH)
    prompt = torch.ones(2, 3, dtype=torch.bool)
    alone, _ = cases.applied(x, cases.view(cases.table_of([quiet, quiet], WIDTH)), prompt, ALL_NORMS)
    beside, _ = cases.applied(x, cases.view(cases.table_of([quiet, loud], WIDTH)), prompt, ALL_NORMS)
    assert torch.equal(alone[0], beside[0])
    assert torch.equal(alone[0], x[0])
    assert not torch.equal(alone[1], beside[1])


def test_a_clamped_feature_reads_its_value_where_the_row_is_dual() -> None:
    direction = torch.zeros(WIDTH)
    direction[2] = 2.0
    probe = rows.Probe.direction(direction)
    program = SiteProgram(edits=(rows.clamp(probe, 7.5),), watches=(probe,))
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    result, readings = cases.applied(x, cases.view(cases.table_of([program], WIDTH)), torch.ones(1, 5) > 0)
    assert torch.allclose(readings.watched_after[..., 0], torch.full((1, 5), 7.5), atol=1e-5)
    assert torch.allclose(result[..., 2], torch.full((1, 5), 7.5), atol=1e-5)
    assert torch.equal(result[..., 3:], x[..., 3:])
    assert bool(readings.edited.all())


def test_moving_a_slot_moves_its_program() -> None:
    rng = torch.Generator().manual_seed(5)
    programs = [SiteProgram(), random_program(rng, (4, 1, 2, 3))]
    table = cases.table_of(programs, WIDTH)
    x = cases.activations(rng, 1, 2, WIDTH).expand(2, 2, WIDTH)
    prompt = torch.ones(2, 2, dtype=torch.bool)
    before, _ = cases.applied(x, cases.view(table), prompt, ALL_NORMS)
    table.move(1, 0)
    after, _ = cases.applied(x, cases.view(table), prompt, ALL_NORMS)
    assert torch.equal(after[0], before[1])
    assert torch.equal(after[1], x[1])


def test_a_bound_holds_exactly_what_exceeds_it_and_leaves_the_bits_of_what_does_not() -> None:
    rng = torch.Generator().manual_seed(7)
    own = random_program(rng, (6, 0, 0, 0))
    x = cases.activations(rng, 1, 200, WIDTH)
    prompt = torch.ones(1, 200, dtype=torch.bool)

    def moved(bound: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        program = SiteProgram(edits=own.edits, max_relative_norm=bound)
        result, readings = cases.applied(x, cases.view(cases.table_of([program], WIDTH)), prompt, ALL_NORMS)
        return result, readings.relative_norm[0]

    free, shares = moved(None)
    bound = float(shares.median())
    held, left = moved(bound)
    within = shares <= bound * (1.0 - 1e-5)
    assert torch.equal(held[0, within], free[0, within])
    beyond = shares >= bound * (1.0 + 1e-5)
    assert 60 < int(within.sum()) < 140 > int(beyond.sum()) > 60
    torch.testing.assert_close(left[beyond], torch.full_like(left[beyond], bound), rtol=1e-4, atol=0.0)
    directions = torch.nn.functional.cosine_similarity(held - x, free - x, dim=-1)[0, beyond]
    assert float(directions.min()) > 1.0 - 1e-4
    still, _ = moved(0.0)
    assert torch.equal(still, x)


def test_a_bound_is_of_the_edits_alone_and_the_bans_hold_behind_it() -> None:
    """In half precision too: rules and bans may move a token as far as they must."""
    rng = torch.Generator().manual_seed(8)
    bans = cases.correlated_bans(rng, 6, WIDTH, 0.5, 1.5)
    undo = tuple(rows.clamp(ban.probe, 400.0) for ban in bans)
    rule = (rows.add(cases.random_probe(rng, WIDTH, "direction", Norm.NONE, "rule"), 50.0),)
    program = SiteProgram(edits=undo, rules=rule, bans=bans, max_relative_norm=0.05)
    for dtype in (torch.float32, torch.bfloat16):
        x = cases.activations(rng, 1, 100, WIDTH).to(dtype)
        table = cases.table_of([program], WIDTH, dtype)
        result, readings = cases.applied(x, cases.view(table), torch.ones(1, 100) > 0)
        assert float(readings.relative_norm.median()) > 1.0
        for token in range(100):
            over = reference.excess(reference.banned(bans), reference.vector(result[0, token]))
            assert over.max() <= 0.0
