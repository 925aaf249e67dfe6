"""Flattened tokens against plain loops over texts and their tokens."""

import random

import torch

from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.vllm.flattened import Flattened, Part
from saegis_server.engine.vllm.orders import Order
from saegis_server.engine.vllm.plan import Plan
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity
from tests.tiers import sized


def parts(chance: random.Random) -> list[Part]:
    """A step of a few texts, each a chunk of a prompt or a token of an answer."""
    slots = chance.sample(range(9), chance.randint(1, 5))
    made = []
    for slot in slots:
        start, count = chance.choice(((0, 1), (0, 7), (5, 3), (20, 1)))
        order = Order(
            slot,
            {},
            RowCounts(0, 0, 0, 0, 0),
            chance.randint(1, 12),
            unmoved=chance.randint(0, 1),
            left_out=chance.randint(0, 2),
        )
        made.append(Part(f"{slot}", order, start, count, chance.randint(0, 6)))
    return made


def test_tokens_and_grid_are_what_loops_say() -> None:
    chance = random.Random(5)
    for _ in range(sized(60, 20)):
        given = parts(chance)
        flat = Flattened(given, torch.device("cpu"))
        each = [(part, part.start + place) for part in given for place in range(part.length)]
        assert flat.count == len(each)
        assert flat.slot.tolist() == [part.order.slot for part, _ in each]
        assert flat.position.tolist() == [position for _, position in each]
        assert flat.prompt.tolist() == [position < part.order.answer for part, position in each]
        assert flat.new.tolist() == [position >= part.counted for part, position in each]
        assert flat.observed.tolist() == [position >= part.order.left_out for part, position in each]
        unmoved = [position < part.order.unmoved for part, position in each]
        assert (flat.unmoved is None and not any(unmoved)) or flat.unmoved.tolist() == unmoved  # type: ignore[union-attr]
        on_grid = flat.on_grid(flat.position).view(flat.batch, flat.longest)
        for row, part in enumerate(given):
            assert on_grid[row, : part.length].tolist() == list(range(part.start, part.start + part.length))
            assert flat.given[row].tolist() == [place < part.length for place in range(flat.longest)]
        assert torch.equal(flat.from_grid(flat.on_grid(flat.position)), flat.position)
        assert flat.position[flat.last].tolist() == [part.start + part.length - 1 for part in given]


def test_a_plan_is_what_it_was_after_vllm_has_handed_it_on() -> None:
    norms = {Site.parse("layers.1.attn_z"): frozenset((Norm.NONE,)), Site.parse("layers.2"): frozenset(Norm)}
    own = ((Site.parse("layers.1.attn_z"), 96),)
    plan = Plan(norms, Widths(48, own), 6, Capacity(edits=5), 3, {}, ("b", "a"))
    found = Plan.of(plan.told())
    assert (found.norms, found.widths, found.slots, found.layers) == (norms, plan.widths, 6, 3)
    assert (found.capacity, found.saes) == (Capacity(edits=5), ("a", "b"))
