"""Feature batches: every token once, at its place, with the features of what Transformers has there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saegis_lab.training import activations as module
from saegis_lab.training.activations import feature_batches
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering.site import Site, SiteError
from tests.engine.tiny import WIDTH, model
from tests.sae.sae_cases import build, random_tensors

MODEL = model("llama")
SITE = Site.parse("layers.1.resid_post")


def sae(width: int = WIDTH) -> SparseAutoencoder:
    return build(Architecture.JUMPRELU, random_tensors(Architecture.JUMPRELU, 0, width=width))


def oracle(row: list[int]) -> torch.Tensor:
    """The features of each token of one text by itself."""
    with torch.no_grad():
        states = MODEL(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False)
        return sae().encode(states.hidden_states[2][0])


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.lists(st.integers(0, 255), max_size=12), max_size=6),
    batch_tokens=st.integers(1, 40),
    most_numbers=st.sampled_from([1, 100, 1 << 24]),
)
def test_every_token_comes_once_with_its_features(
    rows: list[list[int]], batch_tokens: int, most_numbers: int
) -> None:
    excluded = frozenset({7, *(row[-1] for row in rows[:1] if row)})
    found: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_NUMBERS", most_numbers)
        for batch in feature_batches(MODEL, SITE, sae(), rows, excluded, batch_tokens):
            assert len(batch.activations) <= max(1, most_numbers // 24)
            places = zip(batch.texts.tolist(), batch.places.tolist(), strict=True)
            for at, place in enumerate(places):
                assert place not in found
                found[place] = int(batch.token_ids[at]), batch.activations[at]
    expected = {
        (number, place): token
        for number, row in enumerate(rows)
        for place, token in enumerate(row)
        if place and token not in excluded
    }
    assert {place: token for place, (token, _) in found.items()} == expected
    for number, row in enumerate(rows):
        features = oracle(row) if row else torch.zeros(0, 24)
        for at in range(len(row)):
            if (number, at) in found:
                assert torch.allclose(found[number, at][1], features[at], atol=1e-4, rtol=1e-4)


def test_a_site_or_a_width_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(SiteError, match=r"layers\.9\.resid_post does not exist"):
        next(feature_batches(MODEL, Site.parse("layers.9"), sae(), [[1, 2]]))
    with pytest.raises(ValueError, match="this SAE reads activations of width 8"):
        next(feature_batches(MODEL, SITE, sae(width=8), [[1, 2]]))
