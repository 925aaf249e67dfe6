"""What is read at one place and written at another, against the float64 loop."""

import torch

from saegis_server.steering.apart import read_apart, write_apart
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm, Phase, ablate, clamp, scale
from saegis_server.steering.tokens import Spread, Tokens
from tests.steering import cases, reference

WIDTH = 16


def written(
    program: SiteProgram, read: torch.Tensor, x: torch.Tensor, prompt: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, d] after what the program reads of `read` [T, d], and its watches' values."""
    view = cases.view(cases.table_of([program], WIDTH))
    tokens = Tokens(torch.full((len(x),), prompt), Spread.ONE)
    result, readings = write_apart(x, read_apart(read, view, tokens))
    assert torch.equal(readings.edited, (result != x).any(-1))
    torch.testing.assert_close(readings.relative_norm, (result - x).norm(dim=-1) / x.norm(dim=-1))
    assert torch.equal(readings.watched_before, readings.watched_after)
    return result, readings.watched_before


def test_what_is_read_at_one_place_moves_the_other_one() -> None:
    rng = torch.Generator().manual_seed(3)
    kinds = ("relu", "jumprelu", "gated", "relu")
    one, two, three, watched = (
        cases.random_probe(rng, WIDTH, kind, Norm.NONE, str(i)) for i, kind in enumerate(kinds)
    )
    edits = (clamp(one, 3.0), scale(two, -2.0), ablate(three, phase=Phase.COMPLETION))
    read, x = (torch.randn(12, WIDTH, generator=rng) for _ in range(2))
    program = SiteProgram(edits=edits, watches=(watched,))
    for prompt in (True, False):
        found, values = written(program, read, x, prompt)
        for token, given in enumerate(read):
            at, wanted = reference.vector(given), reference.vector(x[token])
            for edit in edits:
                wanted = wanted + reference.change(edit, at, prompt, 1.0)
            torch.testing.assert_close(found[token].double(), torch.from_numpy(wanted), atol=1e-5, rtol=1e-5)
            assert abs(float(values[token, 0]) - reference.read(watched, at)) < 1e-4


def test_a_bound_is_a_share_of_what_is_written_to_and_what_is_not_moved_keeps_its_bits() -> None:
    rng = torch.Generator().manual_seed(4)
    probe = cases.random_probe(rng, WIDTH, "relu", Norm.NONE, "one")
    read, x = (torch.randn(12, WIDTH, generator=rng) for _ in range(2))
    bounded = SiteProgram(edits=(clamp(probe, 500.0),), max_relative_norm=0.5)
    found, _ = written(bounded, 100.0 * read, x, True)
    torch.testing.assert_close((found - x).norm(dim=-1), 0.5 * x.norm(dim=-1))
    later = SiteProgram(edits=(clamp(probe, 500.0, phase=Phase.COMPLETION),))
    assert torch.equal(written(later, read, x, True)[0], x)
