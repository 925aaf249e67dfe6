"""The tally: a token that was moved counts."""

import torch

from saegis_server.steering import rows
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Probe
from saegis_server.steering.table import Capacity, SiteTable
from tests.engine import tiny
from tests.steering import cases

VECTOR = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))


def test_a_move_counts_however_small_it_is() -> None:
    """Its square is no number of float32 any more."""
    table = SiteTable(2, tiny.WIDTH, Capacity(), torch.device("cpu"))
    table.write(0, SiteProgram(edits=(rows.add(Probe.direction(VECTOR), 1e-30),)), None)
    x = torch.zeros(1, 1, tiny.WIDTH)
    moved, readings = cases.applied(x, table.view(1, *(2,) * 5), torch.ones(1, 1, dtype=torch.bool))
    assert bool((moved != x).any())
    assert bool(readings.edited.all())
