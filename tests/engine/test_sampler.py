"""The sampler against Transformers' own logits processors, row by row."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from saegis_server.engine.torch.sampler import (
    SamplingTable,
    draw,
    filtered,
    penalised,
    sample,
    sampling_table,
    uniform,
)

VOCABULARY = 40


def table(rows: int, **columns: object) -> SamplingTable:
    """A table of rows that sample freely at temperature 1, but for `columns`."""
    made = sampling_table(rows, VOCABULARY)
    made.temperature.fill_(1.0)
    for name, values in columns.items():
        getattr(made, name).copy_(torch.as_tensor(values))
    return made


def expected(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Probabilities [V] by Transformers' warpers, in its order."""
    ids: Any = torch.zeros(1, 1, dtype=torch.int64)
    scores: Any = TemperatureLogitsWarper(temperature)(ids, logits[None])
    scores = TopKLogitsWarper(top_k)(ids, scores)
    scores = TopPLogitsWarper(top_p)(ids, scores) if top_p < 1.0 else scores
    scores = MinPLogitsWarper(min_p)(ids, scores) if min_p > 0.0 else scores
    probabilities: Tensor = torch.softmax(scores, -1)[0]
    return probabilities


parameters = st.tuples(
    st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    st.integers(1, VOCABULARY),
    st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.lists(parameters, min_size=1, max_size=5))
def test_filters_are_those_of_transformers(seed: int, rows: list[tuple[float, int, float, float]]) -> None:
    logits = 3.0 * torch.randn(len(rows), VOCABULARY, generator=torch.Generator().manual_seed(seed))
    temperature, top_k, top_p, min_p = (list(column) for column in zip(*rows, strict=True))
    made = table(len(rows), temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = filtered(logits, made)
    probabilities = weights / weights.sum(-1, keepdim=True)
    for row, wanted in enumerate(rows):
        assert torch.allclose(probabilities[row], expected(logits[row], *wanted), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([0.5, 1.0, 1.3, 2.0]))
def test_penalties_are_those_of_transformers_and_openai(seed: int, penalty: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, VOCABULARY, generator=rng)
    prompt, written = (torch.randint(VOCABULARY, (8,), generator=rng) for _ in range(2))
    counts = torch.bincount(written, minlength=VOCABULARY).to(torch.int32)[None]
    in_prompt = (torch.bincount(prompt, minlength=VOCABULARY) > 0)[None]
    made = table(1, repetition=[penalty], presence=[0.4], frequency=[0.2], counts=counts, in_prompt=in_prompt)
    repeated = RepetitionPenaltyLogitsProcessor(penalty)(torch.cat((prompt, written))[None], logits.clone())
    for token in range(VOCABULARY):
        times = int(counts[0, token])
        repeated[0, token] -= 0.2 * times + (0.4 if times else 0.0)
    assert torch.allclose(penalised(logits, made), repeated, atol=1e-6)


def test_min_tokens_holds_the_stops_back() -> None:
    stops = torch.zeros(2, VOCABULARY, dtype=torch.bool)
    stops[:, 7] = True
    made = table(2, temperature=[0.0, 0.0], stops=stops, min_tokens=[3, 3], generated=[2, 3])
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 7] = 5.0
    assert (sample(logits, made) == 7).tolist() == [False, True]


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    numbers = uniform(torch.full((20_000,), 5), torch.arange(20_000))
    assert float(numbers.min()) >= 0.0
    assert float(numbers.max()) < 1.0
    cells = torch.bincount((numbers * 20).to(torch.int64), minlength=20).double()
    assert float(((cells - 1000.0) ** 2 / 1000.0).sum()) < 43.8  # chi-square, 19 degrees, p = 0.001
    drawn = torch.bincount(draw(weights.expand(20_000, -1), numbers), minlength=6) / 20_000
    assert torch.allclose(drawn, weights / 8.0, atol=0.012)
    assert torch.equal(numbers, uniform(torch.full((20_000,), 5), torch.arange(20_000)))
    assert not torch.equal(numbers[:100], uniform(torch.full((100,), 6), torch.arange(100)))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(6, VOCABULARY, generator=rng)
    together = sample(logits, table(6, seed=list(range(6)), top_p=[0.9] * 6))
    for row in range(6):
        alone = sample(logits[row : row + 1], table(1, seed=[row], top_p=[0.9]))
        assert int(alone[0]) == int(together[row])


def test_rows_without_limits_are_weighed_alike_alone_and_beside_limited_ones() -> None:
    logits = 4.0 * torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(4))
    together = filtered(logits, table(3, top_k=[VOCABULARY, 2, VOCABULARY], top_p=[1.0, 1.0, 0.3]))
    assert torch.equal(filtered(logits[:1], table(1, top_k=[VOCABULARY], top_p=[1.0])), together[:1])
    assert torch.equal(filtered(logits[1:2], table(1, top_k=[2], top_p=[1.0])), together[1:2])
    assert torch.equal(filtered(logits[2:], table(1, top_k=[VOCABULARY], top_p=[0.3])), together[2:])
    assert [int((row > 0.0).sum()) for row in together[:2]] == [VOCABULARY, 2]
