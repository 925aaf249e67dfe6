"""The sampler where it may go astray: impossible tokens, filtered greedy rows, bias, neighbouring seeds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.engine.torch.sampler import SamplingTable, penalised, sample, sampling_table, uniform

VOCABULARY = 60


def table(rows: int, **columns: object) -> SamplingTable:
    """A table of greedy rows, but for `columns`."""
    made = sampling_table(rows, VOCABULARY)
    for name, values in columns.items():
        getattr(made, name).copy_(torch.as_tensor(values))
    return made


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, of all the numbers of two grids."""
    return float(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1])


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_token_of_no_probability_is_never_chosen(temperature: float, top_p: float) -> None:
    logits = torch.full((200, VOCABULARY), -torch.inf)
    logits[:, 11], logits[:, 40] = 0.0, -0.5
    columns = {"temperature": [temperature] * 200, "top_p": [top_p] * 200, "seed": list(range(200))}
    chosen = set(sample(logits, table(200, **columns)).tolist())
    assert 11 in chosen
    assert chosen <= {11, 40}
    assert (40 in chosen) == (temperature >= 1.0 and top_p == 1.0)


@pytest.mark.parametrize("top_p", [1e-30, 1e-45, 1e-300])
def test_of_next_to_no_mass_the_likeliest_token_is_left(top_p: float) -> None:
    """Also where as a float32 it is 0; temperatures and min-p as extreme leave it too."""
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(8))
    temperatures = [1e-45, 1e-6, 1.0, 100.0, 1.0, 1.0]
    made = table(
        6, top_p=[top_p] * 6, temperature=temperatures, min_p=[0.0] * 4 + [1.0] * 2, seed=list(range(6))
    )
    assert torch.equal(sample(logits, made), logits.argmax(-1))


def test_temperature_zero_is_the_likeliest_whatever_the_filters_say() -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(8))
    made = table(4, top_p=[0.1, 0.5, 1.0, 1.0], top_k=[1, 60, 2, 60], min_p=[0.0, 1.0, 0.3, 0.0])
    assert torch.equal(sample(logits, made), logits.argmax(-1))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(-2.0, 2.0),
    st.floats(-2.0, 2.0),
    st.lists(st.integers(0, VOCABULARY - 1)),
    st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100.0, 100.0)),
)
def test_bias_and_openai_penalties_of_either_sign_are_the_loop(
    seed: int, presence: float, frequency: float, written: list[int], bias: dict[int, float]
) -> None:
    logits = 3.0 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    made = table(1, presence=[presence], frequency=[frequency])
    wanted = logits[0].double()
    for token in range(VOCABULARY):
        count = written.count(token)
        made.counts[0, token], made.bias[0, token] = count, bias.get(token, 0.0)
        wanted[token] += bias.get(token, 0.0) - frequency * count - presence * (count > 0)
    torch.testing.assert_close(penalised(logits, made)[0].double(), wanted, rtol=1e-5, atol=1e-4)


def test_neighbouring_seeds_and_positions_have_nothing_in_common() -> None:
    seeds, positions = torch.arange(200).repeat_interleave(200), torch.arange(200).repeat(200)
    numbers = uniform(seeds, positions)
    cells = torch.bincount((numbers * 100).to(torch.int64), minlength=100).double()
    assert float(((cells - 400.0) ** 2 / 400.0).sum()) < 149.0  # chi-square, 99 degrees, p = 0.001
    grid = numbers.reshape(200, 200)
    assert abs(correlation(grid[1:], grid[:-1])) < 0.025
    assert abs(correlation(grid[:, 1:], grid[:, :-1])) < 0.025
    assert abs(correlation(grid[1:, :-1], grid[:-1, 1:])) < 0.025
    # n sequences of a request have seeds in a row: none may be another one shifted.
    assert len(set(numbers.tolist())) > 39_000


def test_the_largest_seeds_are_as_good_as_small_ones() -> None:
    seeds = torch.tensor([2**63 - 1, -(2**63), -1, 0, 1]).repeat_interleave(2000)
    numbers = uniform(seeds, torch.arange(2000).repeat(5)).reshape(5, 2000)
    assert bool(((numbers >= 0.0) & (numbers < 1.0)).all())
    assert torch.allclose(numbers.mean(1), torch.full((5,), 0.5), atol=0.03)
