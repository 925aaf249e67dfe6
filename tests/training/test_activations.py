"""The streams of activations that training reads."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_lab.training.activations import (
    Buffer,
    activation_batches,
    activations_of,
    token_batches,
)
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.steering.site import Site
from tests.engine import tiny

SITE = Site.parse("layers.1.resid_post")
ROWS = [tiny.prompt_of(seed, length) for seed, length in enumerate((5, 9, 1, 12, 7, 9, 3))]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), max_size=30),
    batch_tokens=st.integers(1, 60),
    pool=st.integers(1, 12),
)
def test_batches_hold_every_row_once_and_little_padding(
    lengths: list[int], batch_tokens: int, pool: int
) -> None:
    rows = [[1000 * number + place for place in range(length)] for number, length in enumerate(lengths)]
    found = []
    for ids, real in token_batches(iter(rows), -1, batch_tokens, pool):
        assert ids.numel() <= max(batch_tokens, ids.shape[1])
        assert (ids[~real] == -1).all()
        found += [row[kept].tolist() for row, kept in zip(ids, real, strict=True)]
    assert sorted(found) == sorted(row for row in rows if row)


def each(rows: list[list[int]], excluded: frozenset[int], skip: int) -> Tensor:
    """The activations that are to be kept, row by row, without padding."""
    model = tiny.model("gpt2")
    kept = []
    for row in rows:
        x = read_site(model, SITE, torch.tensor([row]))[0]
        kept += [x[place] for place, token in enumerate(row) if place >= skip and token not in excluded]
    return torch.stack(kept)


def in_order(x: Tensor) -> Tensor:
    return x[x[:, 0].argsort()]


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_padding_excluded_tokens_and_the_first_ones_are_left_out(skip: int) -> None:
    excluded = frozenset({ROWS[1][4], ROWS[3][0]})
    found = torch.cat(
        list(activations_of(tiny.model("gpt2"), SITE, ROWS, Buffer(batch_tokens=24), excluded, skip))
    )
    torch.testing.assert_close(in_order(found), in_order(each(ROWS, excluded, skip)), rtol=1e-4, atol=1e-4)


def test_the_buffer_gives_each_activation_as_often_as_it_is_reused() -> None:
    """46 tokens in one buffer: 11 batches of 4 each time, and never one activation twice in a pass."""
    buffer = Buffer(batch=4, tokens=1000, reuse=3, batch_tokens=24, seed=5)
    batches = list(activation_batches(tiny.model("gpt2"), SITE, ROWS, buffer))
    assert [list(x.shape) for x in batches] == [[4, tiny.WIDTH]] * 33
    for start in (0, 11, 22):
        assert len(torch.unique(torch.cat(batches[start : start + 11]), dim=0)) == 44
    again = list(activation_batches(tiny.model("gpt2"), SITE, ROWS, buffer))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))
    assert not torch.equal(batches[0], batches[11])


def test_a_full_buffer_is_given_before_more_is_read() -> None:
    read = 0

    def rows() -> Iterator[list[int]]:
        nonlocal read
        while True:
            read += 1
            yield ROWS[read % len(ROWS)]

    stream = activation_batches(tiny.model("gpt2"), SITE, rows(), Buffer(batch=4, tokens=16))
    assert len(list(islice(stream, 2))) == 2
    # Rows are sorted 2048 at a time.
    assert read == 2048
