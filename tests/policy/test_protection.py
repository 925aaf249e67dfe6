"""Protection: nothing close to what is protected gets through, alone or as a sum, and what is far does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_server.policy.decide.protection import span_cosines, units
from saegis_server.steering.operations import Op
from saegis_server.steering.rows import Phase
from saegis_server.steering.site import Site
from tests.policy.policies import CATALOG, along, decide, edit, policy, reasons, redirect, watch
from tests.rpc import tiny

ALLOW = """
allow: [{id: any, ops: [clamp, add, ablate, ban, redirect], directions: true}]
limits: {after_bans: true}"""
PROBE = CATALOG.entries[0].sae.probe(7)
WIDTH = tiny.WIDTH


def protecting(max_cosine: float) -> str:
    target = "features: [{sae: first, index: 7}]"
    return f"{ALLOW}\nprotect: [{{id: keep, {target}, max_cosine: {max_cosine}}}]"


CLOSE = policy(protecting(0.5))


def noise(seed: int) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def apart(seed: int) -> torch.Tensor:
    """A unit vector at right angles to the protected rows."""
    rows = np.linalg.qr(np.stack([PROBE.read.double().numpy(), PROBE.write.double().numpy()]).T)[0]
    vector = noise(seed).double().numpy()
    vector = vector - rows @ (rows.T @ vector)
    return torch.from_numpy(vector / np.linalg.norm(vector)).float()


def unit(vector: torch.Tensor) -> torch.Tensor:
    unit_vector: torch.Tensor = vector / vector.norm()
    return unit_vector


def test_what_is_protected_may_not_be_touched() -> None:
    for op in (Op.CLAMP, Op.ABLATE, Op.BAN):
        assert reasons(decide(CLOSE, edit(7, op)).denials) == {("p", "keep", "steering.edits[0]")}
    assert not decide(policy(protecting(1.0)), edit(7)).allowed


def test_what_is_protected_may_not_be_read_either_alone_or_as_a_sum() -> None:
    reading = policy(protecting(0.5).replace("ops: [clamp", "ops: [watch, clamp"))
    assert decide(reading, watch(4)).allowed
    assert reasons(decide(reading, watch(7)).denials) == {("p", "keep", "steering.watches[0]")}
    along_it = replace(along(PROBE.read, Op.WATCH, None), path="steering.watches[0]")
    assert reasons(decide(reading, along_it).denials) == {("p", "keep", "steering.watches[0]")}
    halves = [unit(unit(PROBE.read) + 3.0 * sign * apart(1)) for sign in (1.0, -1.0)]
    assert all(decide(reading, along(half, Op.WATCH, None)).allowed for half in halves)
    both = decide(reading, *(along(half, Op.WATCH, None, place=n) for n, half in enumerate(halves)))
    assert reasons(both.denials) == {("p", "keep", "steering.watches")}


@pytest.mark.parametrize("row", [PROBE.read, PROBE.write])
@pytest.mark.parametrize("site", tiny.SITES)
@pytest.mark.parametrize(("cosine", "allowed"), [(0.45, True), (0.55, False), (-0.55, False), (1.0, False)])
def test_a_vector_up_to_the_bound(row: torch.Tensor, site: Site, cosine: float, allowed: bool) -> None:
    vector = cosine * unit(row) + (1.0 - cosine**2) ** 0.5 * apart(1)
    decision = decide(CLOSE, along(vector, site=site))
    assert decision.allowed is allowed
    assert reasons(decision.denials) == (set() if allowed else {("p", "keep", "steering.edits[0]")})


def test_the_scale_of_a_vector_makes_no_difference() -> None:
    for factor in (1e-30, 1e-4, 1e30):
        assert not decide(CLOSE, along(factor * unit(PROBE.read))).allowed


@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.0, 0.4), st.floats(-20.0, 20.0))
@settings(max_examples=60)
def test_vectors_that_add_up_to_what_is_protected(
    seed: int, count: int, noise_share: float, blow: float
) -> None:
    """A sum is taken apart into vectors that are far from it, each by itself."""
    generator = np.random.default_rng(seed)
    target = unit(PROBE.read).double().numpy() + noise_share * apart(seed).double().numpy()
    pieces = [6.0 * apart(seed + place).double().numpy() for place in range(1, count)]
    last = target * (1.0 + abs(blow)) - sum(pieces)
    vectors = [torch.from_numpy(vector).float() for vector in (*pieces, last)]
    generator.shuffle(vectors)
    asked = [along(vector, site=tiny.SITES[place % 2], place=place) for place, vector in enumerate(vectors)]
    decision = decide(CLOSE, *asked)
    assert not decision.allowed
    assert {denial.rule for denial in decision.denials} == {"keep"}


def test_two_nearly_equal_vectors_reach_their_difference() -> None:
    base = apart(3)
    shifted = base + 1e-4 * unit(PROBE.write)
    decision = decide(CLOSE, along(base), along(shifted, place=1))
    assert reasons(decision.denials) == {("p", "keep", "steering.edits")}


def test_the_same_vector_twice_reaches_nothing_new() -> None:
    base = apart(3)
    asked = (
        along(base, phase=Phase.PROMPT),
        along(2.0 * base, phase=Phase.COMPLETION, place=1),
        along(-base, site=tiny.SITES[1], place=2),
    )
    assert decide(CLOSE, *asked).allowed


def test_features_whose_rows_are_far_may_be_edited() -> None:
    sae, tight = CATALOG.entries[0].sae, policy(protecting(0.9))
    for index in range(12):
        probe = sae.probe(index)
        cosines = units([probe.read, probe.write]) @ units([PROBE.read, PROBE.write]).T
        assert decide(tight, edit(index)).allowed is bool(index != 7 and np.abs(cosines).max() <= 0.9)


def test_a_ban_of_the_request_moves_along_what_it_reads() -> None:
    """The feature of the ban writes far from what is protected; its projection moves along its read row."""
    one, other = apart(1), unit(PROBE.read) * 0.4 + 0.9165 * apart(2)
    banned = along(other, Op.BAN, 0.0)
    assert decide(CLOSE, banned).allowed
    rest = other - 0.4 * unit(PROBE.read)
    assert not decide(CLOSE, banned, along(rest, place=1)).allowed
    assert decide(CLOSE, banned, along(one, place=1)).allowed is bool(
        reference_cosine([other, one], PROBE.read) <= 0.5
        and reference_cosine([other, one], PROBE.write) <= 0.5
    )


def test_a_redirect_counts_with_what_it_reads_and_with_what_it_writes() -> None:
    """Touched by name, close by a vector, and as a part of a sum; on either side."""
    keep = {("p", "keep", "steering.edits[0]")}
    close = 0.55 * unit(PROBE.write) + (1.0 - 0.55**2) ** 0.5 * apart(1)
    for bad in (7, close, unit(PROBE.read)):
        assert reasons(decide(CLOSE, redirect(bad, apart(2))).denials) == keep
        assert reasons(decide(CLOSE, redirect(apart(2), bad)).denials) == keep
    assert decide(CLOSE, redirect(apart(1), apart(2))).allowed
    halves = [unit(unit(PROBE.write) + 3.0 * sign * apart(1)) for sign in (1.0, -1.0)]
    assert all(decide(CLOSE, along(half)).allowed for half in halves)
    assert reasons(decide(CLOSE, redirect(halves[0], halves[1])).denials) == {("p", "keep", "steering.edits")}
    beside = decide(CLOSE, redirect(apart(4), halves[0]), along(halves[1], place=1))
    assert reasons(beside.denials) == {("p", "keep", "steering.edits")}


def test_what_a_redirect_writes_counts_as_it_is_made_of_two_vectors() -> None:
    """Neither row is close by itself; w − k·v, what is written, is."""
    halves = [unit(unit(PROBE.write) * 0.45 + 0.893 * sign * apart(1)) for sign in (1.0, -1.0)]
    asked = redirect(halves[0], halves[1], -1.0)
    assert float(units([asked.edit.write])[0] @ units([PROBE.write])[0]) > 0.99
    assert reasons(decide(CLOSE, asked).denials) == {("p", "keep", "steering.edits[0]")}


def reference_cosine(vectors: list[torch.Tensor], protected: torch.Tensor) -> float:
    """By least squares in float64: the nearest sum of the vectors to the protected one."""
    matrix = np.stack([vector.double().numpy() / float(vector.double().norm()) for vector in vectors]).T
    goal = unit(protected.double()).numpy()
    weights, *_ = np.linalg.lstsq(matrix, goal, rcond=1e-12)
    return float(np.linalg.norm(matrix @ weights))


@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(2, 24))
@settings(max_examples=60)
def test_span_cosines_are_those_of_least_squares(seed: int, count: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(width, generator=generator) for _ in range(count)]
    vectors += [vectors[0] * 4.0]  # the very same direction, without rounding
    protected = [torch.randn(width, generator=generator) for _ in range(3)]
    found = span_cosines(units(vectors), units(protected))
    expected = [reference_cosine(vectors, each) for each in protected]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_units_of_the_extremes() -> None:
    rows = units([torch.zeros(3), torch.tensor([3e38, 3e38, 0.0]), torch.tensor([1e-45, 0.0, 0.0])])
    np.testing.assert_allclose(rows, [[0, 0, 0], [0.5**0.5, 0.5**0.5, 0], [1, 0, 0]], atol=1e-12)


def test_what_is_only_watched_over_does_not_deny() -> None:
    audited = policy(f"mode: audit\n{protecting(0.5)}")
    decision = decide(audited, edit(7))
    assert decision.allowed
    assert reasons(decision.would_deny) == {("p", "keep", "steering.edits[0]")}
