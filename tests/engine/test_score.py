"""Comparing two readings of a text: what float64 says, in every dtype."""

import pytest
import torch

from saegis_server.engine.torch.score import POSITIONS_AT_ONCE, compare


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, POSITIONS_AT_ONCE, 2 * POSITIONS_AT_ONCE + 1])
def test_comparing_is_what_float64_says(dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(count)
    plain = 5.0 * torch.randn(count, 1000)
    steered = (plain + torch.logspace(-4, 1, count)[:, None] * torch.randn(count, 1000)).to(dtype)
    plain, following = plain.to(dtype), torch.randint(1000, (count,))
    found = compare(steered, plain, following)
    p, q = torch.log_softmax(plain.double(), -1), torch.log_softmax(steered.double(), -1)
    wanted = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found.divergences.double(), wanted, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found.logprobs.double(), q[range(count), following], atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(
        found.plain_logprobs.double(), p[range(count), following], atol=1e-5, rtol=1e-6
    )
    assert bool((found.divergences >= 0.0).all())


def test_what_steering_makes_impossible_diverges_without_bound_and_is_a_number() -> None:
    plain = torch.tensor([[0.0, 0.0, -500.0], [0.0, 0.0, -500.0]])
    steered = torch.tensor([[3e38, -3e38, -3e38], [3e38, 3e38, -3e38]])
    found = compare(steered, plain, torch.tensor([1, 0]))
    assert found.divergences.tolist() == [torch.inf, 0.0]
    assert found.logprobs[0] == -torch.inf
