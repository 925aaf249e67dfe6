"""What bans and the operator's caps, floors and clamps hold, at every scale, whatever a request does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry, rounding
from saegis_server.steering.rows import Edit, Norm, Phase, Probe
from tests.steering import cases, reference
from tests.tiers import sized

WIDTH = 48
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEATURE = Probe("f", 0.7 * torch.eye(WIDTH)[0] + 0.2 * torch.eye(WIDTH)[1], torch.eye(WIDTH)[0])


def steered(program: SiteProgram, x: Tensor, dtype: torch.dtype, prompt: bool = True) -> Tensor:
    """x [T, d] steered by a program of one slot, as it is written in a dtype, in float64."""
    table = cases.table_of([program], x.shape[-1], dtype)
    result, _ = cases.applied(x.to(dtype)[None], cases.view(table), torch.full((1, len(x)), prompt))
    return result[0].to(torch.float64)


def values(probe: Probe, x: Tensor) -> list[float]:
    """What a probe's value is at each token, worked out in float64."""
    return [reference.read(probe, reference.vector(token)) for token in x]


def allowance(probe: Probe, x: Tensor, dtype: torch.dtype) -> Tensor:
    """How far the value of a clamped probe may lie from where it is held, by rounding alone, [T]."""
    lost, length = rounding(dtype, x.shape[-1]), float(probe.read.norm())
    return torch.add(lost.relative * x.norm(dim=-1), lost.absolute) * (4.0 * length * probe.gain)


# -- every scale ------------------------------------------------------------------------------------------


def family(rng: torch.Generator, kind: str, count: int) -> Tensor:
    """Encoder rows [count, WIDTH]: apart, correlated, nearly equal, equal in part, or some nearly opposed."""
    own = torch.randn(count, WIDTH, generator=rng, dtype=torch.float64) / WIDTH**0.5
    common = torch.randn(WIDTH, generator=rng, dtype=torch.float64) / WIDTH**0.5
    found: Tensor
    match kind:
        case "apart":
            found = own
        case "correlated":
            found = 0.7 * common + 0.7 * own
        case "nearly equal":
            found = common + 5e-6 * own
        case "equal in part":
            found = own[torch.arange(count) // 2]
        case _:
            found = common * (1.0 - 2.0 * (torch.arange(count) % 2))[:, None] + 0.3 * own
    return found


KINDS = ("apart", "correlated", "nearly equal", "equal in part", "nearly opposed")


def sweep() -> Iterator[tuple[str, int, float, float, float, float]]:
    """Kinds and numbers of rows, decoder norms, thresholds, biases and ‖x‖: each extreme beside others."""
    rng = np.random.default_rng(7)
    for kind in KINDS:
        for _ in range(36):
            yield (
                kind,
                int(rng.choice([1, 2, 3, 8, 32])),
                float(rng.choice([1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4])),
                float(rng.choice([0.0, 1e-6, 1e-3, 0.1, 3.0, 1e3])),
                float(rng.choice([0.0, 1e-6, -1e-3, 0.1, 3.0, -3.0, -1e3, 1e3])),
                float(rng.choice([1e-3, 0.012, 1.0, 30.0, 802.0, 1e5])),
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_scale_wakes_a_ban(dtype: torch.dtype) -> None:
    """Decoder norms 1e-6 to 1e4, thresholds and biases of every sign and size, ‖x‖ 1e-3 to 1e5, 1 to 32 rows,
    dependent and opposing: what is not refused holds for x as it is written, exactly."""
    rng = torch.Generator().manual_seed(3)
    refused, held = [], 0
    for kind, count, norm, threshold, bias, size in sweep():
        reads = family(rng, kind, count).float()
        writes = norm * torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=rng), dim=-1)
        strength = float(10.0 ** (3.0 * torch.rand(1, generator=rng))) - 1.0
        bans = tuple(
            rows.ban(Probe(f"b{i}", reads[i], writes[i], bias, threshold, value_bias=bias), strength)
            for i in range(count)
        )
        x = torch.randn(24, WIDTH, generator=rng)
        x = (size * x / x.norm(dim=-1, keepdim=True)).to(dtype)
        edit = rows.add(Probe.direction(reads[0] - writes[0]), float(torch.randn(1, generator=rng)) * size)
        try:
            result = steered(SiteProgram(edits=(edit,), bans=bans), x, dtype)
        except SteeringError:
            refused.append(kind)
            continue
        result = result[torch.isfinite(result).all(-1)]  # half precision has an end
        level = result @ reads.double().T
        limits = torch.tensor([ban.probe.limit for ban in bans], dtype=torch.float64)
        assert bool((level <= limits).all()), (kind, count, norm, threshold, bias, size, strength)
        held += len(result)
    assert held > 2_000
    assert set(refused) <= {"nearly opposed"}
    assert len(refused) < 30


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_oppose_each_other_exactly_are_refused(dtype: torch.dtype) -> None:
    axis = torch.eye(WIDTH)[0]
    bans = tuple(
        rows.ban(Probe(name, sign * axis, 1e4 * axis, threshold=0.5), 1e3)
        for name, sign in (("u", 1), ("d", -1))
    )
    with pytest.raises(SteeringError, match="oppose each other"):
        held_geometry(SiteProgram(bans=bans), cases.SITE, dtype)


# -- what the operator holds ------------------------------------------------------------------------------


def hostile(rng: torch.Generator, rules: tuple[Edit, ...], digits: float) -> tuple[Edit, ...]:
    """A request's edits of what the rules hold: their own features, along their rows, with huge values."""
    found = []
    for number, rule in enumerate(rules[:8]):
        probe = rule.probe
        own = replace(probe, key=f"own {number}")
        size = float(10.0 ** (digits * torch.rand(1, generator=rng)))
        sign = 1.0 if torch.rand(1, generator=rng) < 0.5 else -1.0
        noise = 0.02 * torch.randn(WIDTH, generator=rng)
        near = Probe.direction(probe.read / probe.read.norm() + noise)
        found += [rows.add(own, sign * size), rows.clamp(near, -sign * size)]
    return tuple(found)


def operators(rng: torch.Generator, count: int) -> tuple[Edit, ...]:
    """Caps, floors and clamps of random features and directions, some in fractions of ‖x‖, of any phase."""
    found: list[Edit] = []
    while len(found) < count:
        kind = ("relu", "jumprelu", "gated", "direction")[int(torch.randint(4, (1,), generator=rng))]
        probe = cases.random_probe(rng, WIDTH, kind, Norm.NONE, f"r{len(found)}")
        make = (rows.cap, rows.floor, rows.clamp, rows.clamp_if_active)[
            int(torch.randint(4, (1,), generator=rng))
        ]
        relative = bool(torch.rand(1, generator=rng) < 0.3)
        value = 20.0 * float(torch.rand(1, generator=rng)) * (0.02 if relative else 1.0)
        phase = list(Phase)[int(torch.randint(3, (1,), generator=rng))]
        rule = make(probe, value, phase=phase, relative=relative)
        if cases.may_rule(rule):  # not a clamp to what the feature jumps over
            found.append(rule)
    return tuple(found)


@settings(max_examples=sized(80, 20), deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 8), banned=st.integers(0, 8), prompt=st.booleans())
def test_nothing_undoes_what_the_operator_holds(seed: int, count: int, banned: int, prompt: bool) -> None:
    """f ≤ cap, f ≥ floor and f = clamp, up to rounding, behind any edits of a request, and beside bans."""
    rng = torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 3]
    rules = operators(rng, count)
    bans = cases.correlated_bans(rng, banned, WIDTH, 0.5, 1.0) if banned else ()
    edits = hostile(rng, (*rules, *bans), 2.0 if dtype is torch.float16 else 6.0)
    x = cases.activations(rng, 12, WIDTH).to(dtype)
    result = steered(SiteProgram(edits=edits, rules=rules, bans=bans), x, dtype, prompt)
    alone = steered(SiteProgram(edits=edits), x, torch.float32, prompt)
    assert bool(torch.isfinite(result).all())
    if bans:
        banned_rows = torch.stack([ban.probe.read for ban in bans]).double()
        limits = torch.tensor([ban.probe.limit for ban in bans], dtype=torch.float64)
        assert bool((result @ banned_rows.T <= limits).all())
    for rule in rules:
        if not reference.acts(rule, prompt):
            continue
        unit = x.double().norm(dim=-1) if rule.relative_to_norm else torch.ones(len(x))
        found, before = torch.tensor(values(rule.probe, result)), torch.tensor(values(rule.probe, alone))
        slack = allowance(rule.probe, result, dtype)
        high = rule.hi if rule.a else rule.b
        low = rule.lo if rule.a else rule.b
        if math.isfinite(high):
            strict = 1e-9 * (1.0 + high * unit) if rule.a else slack
            assert bool((found <= high * unit + strict).all())
        if math.isfinite(low) and low > 0.0:
            # Whether a value near 0 was active, float32 and float64 may see differently.
            on = before > 1e-3 * (1.0 + before.abs().max()) if rule.above == 0.0 else before == before
            assert bool((found >= low * unit - slack)[on].all())


def test_a_cap_that_a_request_adds_to_by_a_million_holds() -> None:
    """What was seen before: under "cap 20" an add of 1e6 left 23,907, and a clamp of 80 left 21.3."""
    rng = torch.Generator().manual_seed(5)
    x = cases.activations(rng, 32, WIDTH)
    for edit in (rows.add(FEATURE, 1e6), rows.clamp(FEATURE, 80.0)):
        result = steered(SiteProgram(edits=(edit,), rules=(rows.cap(FEATURE, 20.0),)), x, torch.float32)
        found = values(FEATURE, result)
        assert min(found) > 15.0
        assert max(found) <= 20.0


def test_a_clamp_that_a_request_adds_to_by_a_million_holds() -> None:
    """What was seen before: under "clamp 3" it left 230,429."""
    x = cases.activations(torch.Generator().manual_seed(5), 32, WIDTH)
    program = SiteProgram(edits=(rows.add(FEATURE, 1e6),), rules=(rows.clamp(FEATURE, 3.0),))
    result = steered(program, x, torch.float32)
    off = (torch.tensor(values(FEATURE, result)) - 3.0).abs()
    assert bool((off <= allowance(FEATURE, result, torch.float32)).all())


def test_a_cap_and_a_floor_of_one_feature_hold_it_between_them() -> None:
    x = 30.0 * cases.activations(torch.Generator().manual_seed(6), 64, WIDTH)
    rules = (rows.cap(FEATURE, 20.0), rows.floor(FEATURE, 5.0))
    for dtype in DTYPES:
        for edits in ((), (rows.add(FEATURE, 1e4),), (rows.add(FEATURE, -1e4),)):
            found = values(FEATURE, steered(SiteProgram(edits=edits, rules=rules), x, dtype))
            assert min(found) >= 5.0 - 1e-6 or dtype is not torch.float32
            assert max(found) <= 20.0 + 1e-6 or dtype is not torch.float32
            assert min(found) > 3.0
            assert max(found) < 22.0


def test_a_feature_that_is_not_active_may_stay_so_under_a_clamp_of_what_is() -> None:
    x = cases.activations(torch.Generator().manual_seed(8), 200, WIDTH)
    result = steered(SiteProgram(rules=(rows.clamp_if_active(FEATURE, 9.0),)), x, torch.float32)
    before, after = torch.tensor(values(FEATURE, x.double())), torch.tensor(values(FEATURE, result))
    assert torch.equal(result[before == 0.0], x.double()[before == 0.0])
    torch.testing.assert_close(
        after[before > 0.0], torch.full_like(after[before > 0.0], 9.0), rtol=1e-4, atol=0.0
    )
    assert 50 < int((before > 0.0).sum()) < 150


def test_a_ban_comes_before_a_bound_of_the_same_feature() -> None:
    x = 10.0 * cases.activations(torch.Generator().manual_seed(9), 32, WIDTH)
    rules = (rows.clamp(FEATURE, 5.0, phase=Phase.ALL),)
    program = SiteProgram(rules=rules, bans=(rows.ban(FEATURE, phase=Phase.PROMPT),))
    assert max(values(FEATURE, steered(program, x, torch.float32, prompt=True))) == 0.0
    found = values(FEATURE, steered(program, x, torch.float32, prompt=False))
    assert max(abs(value - 5.0) for value in found) < 1e-3


def test_a_token_that_lies_within_its_bounds_keeps_its_bits() -> None:
    x = cases.activations(torch.Generator().manual_seed(10), 64, WIDTH)
    rules = (rows.cap(FEATURE, 1e5), rows.floor(Probe.direction(torch.eye(WIDTH)[5]), -1e5))
    assert torch.equal(steered(SiteProgram(rules=rules), x, torch.float32), x.double())


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        ((rows.clamp(replace(FEATURE, threshold=2.0), 1.0),), "above 2"),
        ((rows.clamp(replace(FEATURE, threshold=2.0), 0.1, relative=True),), "above 2"),
        ((rows.cap(FEATURE, 1.0), rows.floor(FEATURE, 2.0)), "leave no value"),
        ((rows.clamp(FEATURE, 1.0), rows.clamp(replace(FEATURE, key="same"), 2.0)), "nearly the same"),
        ((rows.cap(FEATURE, 1.0), rows.floor(replace(FEATURE, key="same"), 0.5)), "oppose each other"),
    ],
)
def test_what_cannot_be_held_is_refused(rules: tuple[Edit, ...], fault: str) -> None:
    with pytest.raises(SteeringError, match=fault) as error:
        held_geometry(SiteProgram(rules=rules), cases.SITE)
    assert error.value.site == cases.SITE
    assert {stage for stage, _ in error.value.rows} == {"rules"}


def test_a_bound_on_a_normalising_sae_is_refused() -> None:
    probe = replace(FEATURE, norm=Norm.LAYER_NORM)
    with pytest.raises(SteeringError, match="cannot be held: its SAE normalises") as error:
        SteeringProgram({cases.SITE: SiteProgram(rules=(rows.add(probe, 1.0), rows.cap(probe, 1.0)))})
    assert error.value.rows == (("rules", 1),)
