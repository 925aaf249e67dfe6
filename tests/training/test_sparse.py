"""Sparse encoding and decoding against the dense products, their gradients included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.training.sparse import Places, decoded, encoded


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 7),
    width=st.integers(1, 5),
    features=st.integers(1, 9),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_it_is_the_dense_product_of_a_masked_matrix(
    tokens: int, width: int, features: int, share: float, seed: int
) -> None:
    """Values, and the gradient to every input, with whole rows and columns off."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    x, W_enc, b_enc, W_dec = draw(tokens, width), draw(width, features), draw(features), draw(features, width)
    mask = torch.rand(tokens, features, generator=generator) < share
    weights = torch.randn(tokens, width, generator=generator)
    inputs = (x, W_enc, b_enc, W_dec)

    places = Places.where(mask)
    p = (x @ W_enc + b_enc).detach()[places.rows, places.columns]
    f = encoded(p, x, W_enc, b_enc, places) ** 2
    ours = decoded(f, places, W_dec)
    dense = ((x @ W_enc + b_enc) ** 2 * mask) @ W_dec
    torch.testing.assert_close(ours, dense)
    expected = torch.autograd.grad((dense * weights).sum(), inputs, allow_unused=True)
    found = torch.autograd.grad((ours * weights).sum(), inputs, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_some_of_the_places_keep_their_order() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    places = Places.where(mask)
    kept = places.only(torch.tensor([True, False, False, True]))
    assert kept.rows.tolist() == [0, 2]
    assert kept.columns.tolist() == [0, 1]
    assert kept.offsets.tolist() == [0, 1, 1]
    assert places.offsets.tolist() == [0, 2, 2]
