"""Bans in adverse geometry: nothing banned re-encodes, and nothing moves further than it must."""

import numpy as np
import pytest
import torch

from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram, SteeringError, SteeringProgram
from saegis_server.steering.projection import held_geometry
from saegis_server.steering.rows import Norm, Probe
from saegis_server.steering.site import Site
from tests.steering import cases, reference
from tests.tiers import sized

WIDTH = 48
#: Of twenty tokens each.
PROGRAMS = sized(500, 100)


def hostile_edits(rng: torch.Generator, bans: tuple[rows.Edit, ...]) -> tuple[rows.Edit, ...]:
    """Edits that try to undo the bans: huge clamps, opposite and nearly parallel directions, neighbours."""
    edits = []
    for index, ban in enumerate(bans[:6]):
        value = float(10.0 ** (4.0 * torch.rand(1, generator=rng)))
        noise = 0.05 * torch.randn(WIDTH, generator=rng)
        sign = -1.0 if index % 2 else 1.0
        neighbour = Probe.direction(sign * ban.probe.read / ban.probe.read.norm() + noise / WIDTH**0.5)
        own = Probe(f"own:{index}", ban.probe.read, ban.probe.write, ban.probe.gate_bias, ban.probe.threshold)
        edits += [rows.clamp(own, value), rows.add(neighbour, -sign * value)]
    return tuple(edits)


def test_hostile_cases() -> None:
    """10,000 tokens, in full, in 500 programs of 1 to 32 correlated bans."""
    rng = torch.Generator().manual_seed(11)
    cases_seen, ratios, worst = 0, [], 0.0
    for trial in range(PROGRAMS):
        count = 1 + trial % 32
        gain = (0.0, 0.5, 0.7, 0.9)[trial % 4]
        bans = cases.correlated_bans(rng, count, WIDTH, gain, strength=(0.0, 2.0)[trial % 2])
        edits = hostile_edits(rng, bans) if trial % 3 else ()
        table = cases.table_of([SiteProgram(edits=edits, bans=bans)], WIDTH)
        x = cases.activations(rng, 1, 20, WIDTH)
        prompt = torch.ones(1, 20, dtype=torch.bool)
        result, _ = cases.applied(x, cases.view(table), prompt)
        for token in range(20):
            got = reference.vector(result[0, token])
            worst = max(worst, float(reference.excess(reference.banned(bans), got).max()))
            cases_seen += 1
            if token == 0 and not edits:
                _, pushed = reference.steer(
                    SiteProgram(edits=edits, bans=bans), reference.vector(x[0, token]), True
                )
                nearest = reference.nearest_allowed(reference.banned(bans), pushed)
                least = np.linalg.norm(nearest - pushed)
                if least > 1e-3:
                    ratios.append(float(np.linalg.norm(got - pushed) / least))
    assert cases_seen == 20 * PROGRAMS
    assert worst <= 0.0
    assert np.median(ratios) <= 1.005
    assert np.percentile(ratios, 99) <= 1.1


def test_rounding_to_bfloat16_does_not_wake_a_banned_feature() -> None:
    rng = torch.Generator().manual_seed(12)
    for trial in range(50):
        bans = cases.correlated_bans(rng, 8, WIDTH, 0.7, strength=1.0)
        probe = Probe.direction(torch.randn(WIDTH, generator=rng))
        edits = (rows.add(probe, 1.0),) if trial % 2 else ()
        table = cases.table_of([SiteProgram(edits=edits, bans=bans)], WIDTH, torch.bfloat16)
        x = (8.0 * cases.activations(rng, 1, 32, WIDTH)).to(torch.bfloat16)
        result, readings = cases.applied(x, cases.view(table), torch.ones(1, 32, dtype=torch.bool))
        assert result.dtype is torch.bfloat16
        assert bool(readings.edited.any())
        for token in range(32):
            allowed = reference.banned(bans)
            was_allowed = (reference.excess(allowed, reference.vector(x[0, token])) <= -1e-3).all()
            assert (reference.excess(allowed, reference.vector(result[0, token])) <= 0.0).all()
            if was_allowed and not edits:
                assert torch.equal(result[0, token], x[0, token])


def test_equal_rows_are_one_ban() -> None:
    rng = torch.Generator().manual_seed(13)
    one = cases.correlated_bans(rng, 1, WIDTH, 0.0, 0.0)[0].probe
    twin = Probe("twin", one.read * 2.0, one.write, 2.0 * one.gate_bias, 1.5 * one.threshold)
    nearly = Probe("nearly", one.read * 1.00001, one.write, one.gate_bias, one.threshold)
    bans = (rows.ban(one), rows.ban(twin), rows.ban(nearly))
    table = cases.table_of([SiteProgram(bans=bans)], WIDTH)
    x = 5.0 * cases.activations(rng, 1, 64, WIDTH)
    result, _ = cases.applied(x, cases.view(table), torch.ones(1, 64, dtype=torch.bool))
    for token in range(64):
        assert (reference.excess(reference.banned(bans), reference.vector(result[0, token])) <= 0.0).all()


def test_bans_that_exclude_everything_are_refused() -> None:
    probe = Probe("up", torch.eye(WIDTH)[0], torch.eye(WIDTH)[0], gate_bias=1.0, value_bias=1.0)
    opposite = Probe("down", -torch.eye(WIDTH)[0], torch.eye(WIDTH)[0], gate_bias=1.0, value_bias=1.0)
    with pytest.raises(SteeringError, match="oppose each other"):
        held_geometry(SiteProgram(bans=(rows.ban(probe), rows.ban(opposite))))


def test_a_ban_on_a_normalising_sae_is_refused() -> None:
    probe = Probe("f", torch.ones(WIDTH), torch.ones(WIDTH), norm=Norm.LAYER_NORM)
    with pytest.raises(SteeringError, match="could not be guaranteed"):
        SteeringProgram({cases.SITE: SiteProgram(bans=(rows.ban(probe),))})


def test_what_is_held_is_worked_out_once_whoever_asks_for_it() -> None:
    def asked(strength: float) -> SiteProgram:
        direction = torch.arange(1.0, 9.0)
        return SiteProgram(bans=(rows.ban(Probe.direction(direction), strength),))

    first = held_geometry(asked(0.0), cases.SITE)
    assert held_geometry(asked(2.0), Site.parse("layers.1")) is first, "a strength is no part of the geometry"
    assert held_geometry(SiteProgram(bans=asked(0.0).bans * 2), cases.SITE) is not first
