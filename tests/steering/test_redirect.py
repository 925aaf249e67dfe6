"""Redirects: what they write, and that nothing of a request undoes an operator's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.steering import rows
from saegis_server.steering.admitted import AdmittedRows, Room
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry, rounding
from saegis_server.steering.reserved import LEAST_LEFT, unreserved_moves
from saegis_server.steering.rows import Edit, Norm, Phase, Probe, Redirection
from saegis_server.steering.site import Widths
from saegis_server.steering.table import Capacity
from tests.steering import cases, reference
from tests.tiers import sized

WIDTH = 48
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEATURE = Probe("f", 0.7 * torch.eye(WIDTH)[0] + 0.2 * torch.eye(WIDTH)[1], torch.eye(WIDTH)[0])
TARGET = Probe.direction(torch.eye(WIDTH)[5] + torch.eye(WIDTH)[6])


def redirect(probe: Probe, target: Probe, factor: float = 3.0, **numbers: float) -> Edit:
    """A redirect at all tokens."""
    return rows.redirect(probe, factor, Redirection(target, **numbers))


def steered(program: SiteProgram, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """x [T, d], of a prompt, steered by a program of one slot, as it is written in a dtype, in float64."""
    view = cases.view(cases.table_of([program], x.shape[-1], dtype))
    result, _ = cases.applied(x.to(dtype)[None], view, torch.ones(1, len(x)))
    return result[0].double()


# -- what it writes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["edits", "rules"])
@pytest.mark.parametrize(("strength", "threshold"), [(0.0, 0.0), (0.0, 1.5), (1.0, 0.0)])
def test_what_a_feature_said_its_target_says_instead(stage: str, strength: float, threshold: float) -> None:
    x = 3.0 * cases.activations(torch.Generator().manual_seed(1), 100, WIDTH)
    row = redirect(FEATURE, TARGET, 3.0, strength=strength, threshold=threshold)
    result = steered(SiteProgram(edits=(row,)) if stage == "edits" else SiteProgram(rules=(row,)), x)
    f = torch.tensor([reference.read(FEATURE, reference.vector(token)) for token in x])
    f = torch.where(f > threshold, f, 0.0)[:, None]
    wanted = x.double() - (1.0 + strength) * f * FEATURE.write.double() + 3.0 * f * TARGET.write.double()
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    still = (f == 0.0)[:, 0]
    assert 20 < int(still.sum()) < 80 or threshold
    assert torch.equal(result[still], x[still].double())


def test_a_redirect_alone_holds_nothing() -> None:
    alone = SiteProgram(rules=(redirect(FEATURE, TARGET),))
    assert alone.held == 0
    assert held_geometry(alone) is None
    beside = replace(alone, bans=(rows.ban(Probe.direction(torch.eye(WIDTH)[9])),))
    geometry = held_geometry(beside)
    assert geometry is not None
    assert len(geometry.basis) == beside.held == 2


# -- what is refused --------------------------------------------------------------------------------------


def normalising(norm: Norm, name: str = "n") -> Probe:
    """A feature of an SAE that normalises its input."""
    return replace(FEATURE, key=name, norm=norm)


@pytest.mark.parametrize(
    ("stage", "row", "fault"),
    [
        ("edits", redirect(FEATURE, TARGET, strength=-0.5), "strength of a redirect"),
        ("edits", redirect(FEATURE, TARGET, threshold=-0.5), "threshold of a redirect"),
        ("rules", replace(redirect(FEATURE, TARGET), above=float("inf")), "threshold of a redirect"),
        ("edits", redirect(FEATURE, TARGET, float("nan")), "not a value"),
        ("rules", redirect(FEATURE, TARGET, 2e6), "not a value"),
        ("edits", replace(rows.clamp(FEATURE, 1.0), target=TARGET), "threshold of a redirect"),
        ("edits", replace(rows.clamp_if_active(FEATURE, 1.0), target=TARGET), "only a redirect has a target"),
        ("rules", replace(redirect(FEATURE, TARGET), hi=2.0), "only a redirect has a target"),
        ("bans", replace(rows.ban(FEATURE), target=TARGET, factor=1.0), "banned and redirected"),
        ("edits", replace(rows.ablate(FEATURE), factor=2.0), "has no target"),
        ("edits", redirect(normalising(Norm.LAYER_NORM), TARGET), "cannot be redirected to"),
        ("edits", redirect(FEATURE, normalising(Norm.CONSTANT_NORM)), "cannot be redirected to"),
        (
            "rules",
            redirect(normalising(Norm.LAYER_NORM), normalising(Norm.LAYER_NORM, "m")),
            "cannot be redirected by a rule: its SAE normalises",
        ),
    ],
)
def test_what_is_no_redirect_is_refused_by_its_row(stage: str, row: Edit, fault: str) -> None:
    other = rows.ban(Probe.direction(torch.eye(WIDTH)[9]))
    program = SiteProgram(**{stage: (other, row)})  # type: ignore[arg-type]
    with pytest.raises(SteeringError, match=fault) as error:
        SteeringProgram({cases.SITE: program})
    assert error.value.rows == ((stage, 1),)
    assert error.value.site == cases.SITE


def test_a_request_may_redirect_within_an_sae_that_normalises() -> None:
    row = redirect(normalising(Norm.LAYER_NORM), normalising(Norm.LAYER_NORM, "m"))
    SteeringProgram({cases.SITE: SiteProgram(edits=(row,))})


def test_a_target_of_another_width_is_refused() -> None:
    program = SiteProgram(rules=(redirect(FEATURE, Probe.direction(torch.ones(WIDTH + 1))),))
    with pytest.raises(SteeringError, match="does not have the width"):
        Room((cases.SITE,), Widths(WIDTH), Capacity()).check(cases.SITE, program)


# -- what no request undoes -------------------------------------------------------------------------------


def operators(rng: torch.Generator, count: int, targets: int) -> tuple[Edit, ...]:
    """Redirects of random features and directions to a few random targets."""
    kinds = ("relu", "jumprelu", "gated", "direction")
    to = [
        cases.random_probe(rng, WIDTH, ("relu", "direction")[place % 2], Norm.NONE, f"t{place}")
        for place in range(targets)
    ]
    return tuple(
        replace(
            redirect(cases.random_probe(rng, WIDTH, kinds[place % 4], Norm.NONE, f"s{place}"), to[0]),
            target=to[place % targets],
            factor=1.0 + place,
        )
        for place in range(count)
    )


def against(rng: torch.Generator, rules: tuple[Edit, ...], digits: float) -> tuple[Edit, ...]:
    """A request's edits against redirects: near what they read and write, and sums of it, by huge values."""
    found: list[Edit] = []
    for number, rule in enumerate(rules[:6]):
        assert rule.target is not None
        size = float(10.0 ** (digits * torch.rand(1, generator=rng)))
        noise = 0.05 * torch.randn(2, WIDTH, generator=rng)
        read, write = rule.probe.read / rule.probe.read.norm(), rule.target.write
        own = replace(rule.probe, key=f"own {number}", write=rule.probe.write + noise[0])
        found += [
            rows.clamp(own, -size),
            rows.add(Probe.direction(write + noise[0]), -size),
            rows.add(Probe.direction(read - write + noise[1]), size),
            redirect(replace(own, key=f"again {number}"), Probe.direction(-write + noise[1]), 40.0),
        ]
    return tuple(found)


@settings(max_examples=sized(80, 20), deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 6), targets=st.integers(1, 3), bans=st.integers(0, 8))
def test_no_edit_and_no_ban_takes_a_redirect_back(seed: int, count: int, targets: int, bans: int) -> None:
    """Along v x moves as without the request: by what the redirects write, up to rounding; with bans behind
    them no less, and no banned feature re-encodes."""
    rng = torch.Generator().manual_seed(seed)
    dtype = DTYPES[seed % 3]
    rules = operators(rng, count, targets)
    edits = against(rng, rules, 2.0 if dtype is torch.float16 else 5.0)
    banned = cases.correlated_bans(rng, bans, WIDTH, 0.5, 1.5) if bans else ()
    x = cases.activations(rng, 12, WIDTH).to(dtype)
    result = steered(SiteProgram(edits=edits, rules=rules, bans=banned), x, dtype)
    alone = np.stack(
        [reference.steer(SiteProgram(rules=rules), reference.vector(token), True)[1] for token in x]
    )
    moved = steered(SiteProgram(edits=edits), x).norm(dim=-1) + x.double().norm(dim=-1)
    lost = rounding(dtype, WIDTH)
    slack = 8.0 * count * (lost.relative * (moved + result.norm(dim=-1)) + lost.absolute)
    for _, rule, target in SiteProgram(rules=rules).redirects:
        row = target.write.double()
        off = (result - torch.from_numpy(alone)) @ row
        near = (torch.stack([token.double() for token in x]) @ rule.probe.read.double()).abs() < 1e-6
        assert bool((off >= -slack)[~near].all())
        if not bans:
            assert bool((off <= slack)[~near].all())
    for token in result:
        over = reference.excess(reference.banned(banned), reference.vector(token))
        assert (over <= 0.0).all()


def test_without_the_guarantee_the_same_edits_take_it_back() -> None:
    rng = torch.Generator().manual_seed(4)
    rules = operators(rng, 3, 1)
    program = SiteProgram(edits=against(rng, rules, 5.0), rules=rules)
    x = cases.activations(rng, 12, WIDTH)
    table = cases.table_of([SiteProgram()], WIDTH)
    table.write(0, program, None)  # the edits' own write vectors
    loose, _ = cases.applied(x[None], cases.view(table), torch.ones(1, 12))
    _, _, target = program.redirects[0]
    wanted = steered(SiteProgram(rules=rules), x) @ target.write.double()
    assert float((loose[0].double() @ target.write.double() - wanted).abs().min()) > 10.0
    held = steered(program, x) @ target.write.double()
    torch.testing.assert_close(held, wanted, rtol=0.0, atol=0.05)  # of a move of 1e5


def test_what_a_request_writes_elsewhere_it_still_writes() -> None:
    """To the bit without redirects among the rules, and whole where it is orthogonal to them."""
    rules = (redirect(FEATURE, TARGET),)
    edits = (rows.add(Probe.direction(torch.eye(WIDTH)[20]), 2.0), rows.clamp(FEATURE, 3.0))
    assert unreserved_moves(SiteProgram(edits=edits, rules=(rows.scale(FEATURE, 0.5),))) is None
    assert unreserved_moves(SiteProgram(rules=rules)) is None
    moves = unreserved_moves(SiteProgram(edits=edits, rules=rules))
    assert moves is not None
    assert torch.equal(moves[0], torch.eye(WIDTH)[20])
    reserved = torch.stack([FEATURE.read, TARGET.write])
    assert float((moves @ reserved.T).abs().max()) < 1e-7
    assert 0.2 < float(moves[1].norm()) < 0.5


@pytest.mark.parametrize("when", [0, 3])
def test_an_edit_that_is_left_with_nothing_is_refused(when: int) -> None:
    rules = (replace(redirect(FEATURE, TARGET), when=when),)
    off = torch.eye(WIDTH)[30]
    for vector in (FEATURE.read, -TARGET.write, FEATURE.read - 2.0 * TARGET.write):
        sees = Probe.direction(vector + 2.0 * LEAST_LEFT * vector.norm() * off)
        AdmittedRows.of(SiteProgram(edits=(rows.add(sees, 1.0),), rules=rules), cases.SITE)
        edits = (rows.add(sees, 1.0), rows.add(Probe.direction(vector + 1e-3 * vector.norm() * off), 1.0))
        with pytest.raises(SteeringError, match="moves only along what a rule redirects") as error:
            AdmittedRows.of(SiteProgram(edits=edits, rules=rules), cases.SITE)
        assert error.value.rows == (("edits", 1),)
        assert error.value.site == cases.SITE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_ban_near_a_target_holds_and_leaves_the_target(dtype: torch.dtype) -> None:
    """The ban lies in the sense of the target and must be pushed down: it goes around v."""
    near = Probe.direction(TARGET.write + 0.5 * torch.eye(WIDTH)[20])
    rules = (redirect(FEATURE, TARGET),)
    program = SiteProgram(rules=rules, bans=(rows.ban(near, 1.0),))
    x = (3.0 * cases.activations(torch.Generator().manual_seed(6), 100, WIDTH)).to(dtype)
    result = steered(program, x, dtype)
    ruled = steered(SiteProgram(rules=rules), x.float())
    lost = rounding(dtype, WIDTH)
    slack = 4.0 * (lost.relative * (x.double().norm(dim=-1) + ruled.norm(dim=-1)) + lost.absolute)
    fell = (ruled - result) @ TARGET.write.double()
    assert bool((fell <= slack).all())
    assert float((result @ near.read.double()).max()) <= 0.0
    without = steered(SiteProgram(rules=rules[:0], bans=program.bans), ruled.to(dtype), dtype)
    assert float(((ruled - without) @ TARGET.write.double()).max()) > 1.0, "it would have been taken back"


def test_a_token_that_no_row_changes_keeps_its_bits_beside_a_ban() -> None:
    x = cases.activations(torch.Generator().manual_seed(7), 200, WIDTH)
    far = Probe("far", torch.eye(WIDTH)[30], torch.eye(WIDTH)[30], threshold=1.0)
    program = SiteProgram(rules=(redirect(FEATURE, TARGET),), bans=(rows.ban(far),))
    for dtype in DTYPES:
        own = x.to(dtype).double()
        silent = (own @ FEATURE.read.double() <= 0.0) & (own[:, 30] < 0.9)
        assert 30 < int(silent.sum()) < 170
        assert torch.equal(steered(program, x, dtype)[silent], own[silent])


@pytest.mark.parametrize("stage", ["edits", "rules"])
def test_a_ban_of_the_target_itself_is_refused(stage: str) -> None:
    """A request's at once, and an operator's own when his rules are proven; of a request's own redirect the
    ban comes last and wins."""
    row, ban = redirect(FEATURE, TARGET), rows.ban(TARGET)
    if stage == "edits":
        assert held_geometry(SiteProgram(edits=(row,), bans=(ban,))) is not None
        return
    with pytest.raises(
        SteeringError, match=rf"oppose each other.*{TARGET.name}, target:{TARGET.name}"
    ) as error:
        held_geometry(SiteProgram(rules=(row,), bans=(ban,)), cases.SITE)
    assert set(error.value.rows) == {("bans", 0), ("rules", 0)}


def test_a_factor_below_zero_is_held_in_its_own_sense() -> None:
    """It writes −v: what is held is that nothing raises v again."""
    rules, ban = (redirect(FEATURE, TARGET, -3.0),), rows.ban(TARGET)
    raises = rows.ban(Probe.direction(-TARGET.write))
    assert held_geometry(SiteProgram(rules=rules, bans=(ban,))) is not None
    with pytest.raises(SteeringError, match=r"oppose each other.*against:direction"):
        held_geometry(SiteProgram(rules=rules, bans=(raises,)))


def test_a_target_that_another_rule_bounds_keeps_its_bound_or_is_refused() -> None:
    target = Probe("t", TARGET.write + 0.5 * torch.eye(WIDTH)[20], TARGET.write)
    x = 3.0 * cases.activations(torch.Generator().manual_seed(8), 100, WIDTH)
    rules = (redirect(FEATURE, target), rows.cap(target, 1.0))
    result = steered(SiteProgram(rules=rules), x)
    assert max(reference.read(target, reference.vector(token)) for token in result) <= 1.0
    floored = steered(SiteProgram(rules=(rules[0], rows.floor(TARGET, 1.0))), x)
    assert min(reference.read(TARGET, reference.vector(token)) for token in floored) >= 1.0
    with pytest.raises(SteeringError, match="oppose each other"):
        held_geometry(SiteProgram(rules=(redirect(FEATURE, TARGET), rows.cap(TARGET, 1.0))))


def test_a_target_is_held_only_where_a_redirect_to_it_may_act() -> None:
    """By phase and by condition; two redirects that differ in it hold the target always."""
    ban, away = rows.ban(Probe.direction(torch.eye(WIDTH)[9])), Probe("g", FEATURE.write, FEATURE.write)
    one = replace(redirect(FEATURE, TARGET), when=1, phase=Phase.PROMPT)
    other = replace(redirect(away, TARGET), when=2, phase=Phase.PROMPT)

    def ranges(*rules: Edit) -> list[list[float]]:
        geometry = held_geometry(SiteProgram(rules=rules, bans=(ban,)))
        assert geometry is not None
        return [geometry.ranges[phase, 0, -3:, -1].tolist() for phase in (0, 1)]

    assert ranges(one) == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert ranges(one, replace(other, when=1, phase=Phase.ALL)) == [[1.0, 0.0, 1.0]] * 2
    assert ranges(one, other) == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
