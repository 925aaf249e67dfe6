"""Which rows act at a token is what the loop in float64 says: those that ask for a change, active bans."""

import pytest
import torch

from saegis_server.steering.program import SiteProgram
from saegis_server.steering.table import Capacity
from tests.steering import cases, reference
from tests.steering.test_apply import ALL_NORMS, WIDTH, random_program

TOKENS = 40


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("prompt", [True, False])
def test_the_rows_that_act_are_those_of_the_loop(seed: int, prompt: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    program = random_program(rng, (4, 6, 5, 2))
    x = cases.activations(rng, TOKENS, WIDTH)
    marks = torch.full((1, TOKENS), float(prompt))
    view = cases.view(cases.table_of([program], WIDTH))
    _, readings = cases.applied(x[None], view, marks, ALL_NORMS)
    expected = [acted_of(program, token, prompt) for token in x]
    assert readings.acted[0].tolist() == expected
    assert any(map(any, expected))


def acted_of(program: SiteProgram, token: torch.Tensor, prompt: bool) -> list[bool]:
    """The rows that act by the loop, as the view of the whole table has them."""
    found = reference.acting(program, reference.vector(token), prompt)
    room = Capacity()
    padded = {"edits": room.edits, "rules": room.rules, "bans": room.held}
    return [
        row < len(found[stage]) and found[stage][row]
        for stage, count in padded.items()
        for row in range(count)
    ]
