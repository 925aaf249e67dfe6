"""The check at load: FVU and L0 against the definition, and SAEs at the wrong site or turned round."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.checks import UNFAMILIAR_FVU, check_reconstruction, largest_fvu, measure
from saegis_server.sae.errors import SAEMismatch
from tests.sae.sae_cases import random_activations, random_sae

WIDTH = 16


def _fitting(features: int = 2 * WIDTH) -> tuple[SparseAutoencoder, Tensor]:
    """An SAE that reconstructs its activations, and 3,000 of them: x is a sum of its rows."""
    generator = torch.Generator().manual_seed(4)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    rows = torch.cat([rotation, -rotation])[:features].contiguous()
    sae = SparseAutoencoder(
        Architecture.JUMPRELU,
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_dec=0.1 * torch.randn(WIDTH, generator=generator),
        b_enc=torch.zeros(features),
        threshold=torch.full((features,), 0.3),
        hook_name="blocks.1.hook_resid_post",
        name="polly",
    )
    amounts = torch.randn(3000, features, generator=generator).clamp(min=0.0)
    return sae, amounts @ rows + sae.b_dec


@settings(max_examples=30, deadline=None)
@given(architecture=st.sampled_from(Architecture), seed=st.integers(0, 10_000), tokens=st.integers(2, 2100))
def test_measure_is_the_definition(architecture: Architecture, seed: int, tokens: int) -> None:
    sae, x = random_sae(architecture, seed), random_activations(tokens, seed + 1)
    f = sae.encode(x)
    unexplained = (x.double() - sae.decode(f, x).double()).square().sum()
    variance = x.double().var(0, unbiased=False).sum() * tokens
    found = measure(sae, x.reshape(1, tokens, -1))
    assert found.fvu == pytest.approx(float(unexplained / variance), rel=1e-5)
    assert found.l0 == pytest.approx(float((f > 0).sum(1).double().mean()), rel=1e-12)


def test_a_large_mean_does_not_spoil_the_sums() -> None:
    sae, x = _fitting()
    far = replace(sae, b_dec=sae.b_dec + 1000.0)
    assert measure(far, x + 1000.0).fvu == pytest.approx(measure(sae, x).fvu, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_sae_at_its_site_passes(dtype: torch.dtype) -> None:
    sae, x = _fitting()
    found = check_reconstruction(replace(sae, stated_fvu=0.02, stated_l0=8.0), x.to(dtype), "layer 1")
    assert found.fvu < 0.1
    assert 4.0 < found.l0 < 16.0


def test_the_wrong_site_is_refused_with_both_numbers() -> None:
    sae, x = _fitting(features=WIDTH // 2)
    sae = replace(sae, stated_fvu=0.02, stated_l0=8.0)
    assert check_reconstruction(sae, x, "layer 1").fvu < 0.1
    elsewhere = 5.0 * x.roll(1, dims=1) + 3.0
    with pytest.raises(SAEMismatch) as caught:
        check_reconstruction(sae, elsewhere, "layer 4")
    error = caught.value
    found = measure(sae, elsewhere)
    assert (error.fvu, error.l0, error.stated_fvu, error.stated_l0) == (found.fvu, found.l0, 0.02, 8.0)
    for part in (
        "the SAE polly does not fit the site layer 4",
        f"its FVU is {found.fvu:.3g} (at most 0.17 is accepted) and its L0 {found.l0:.3g}",
        "its file states an FVU of 0.02 and an L0 of 8",
        "it was trained at blocks.1.hook_resid_post",
    ):
        assert part in str(error)


def test_without_a_stated_fvu_worse_than_the_mean_is_refused() -> None:
    sae, x = _fitting()
    assert check_reconstruction(sae, x, "layer 1").fvu < 0.1
    with pytest.raises(SAEMismatch, match=r"\(at most 1 is accepted\).*its file states neither"):
        check_reconstruction(replace(sae, W_dec=-sae.W_dec), x, "layer 1")
    with pytest.raises(SAEMismatch, match="states no FVU and an L0 of 8"):
        check_reconstruction(replace(sae, W_dec=-sae.W_dec, stated_l0=8.0), x, "layer 1")


@pytest.mark.parametrize("names", [("W_enc",), ("W_dec",), ("W_enc", "W_dec")])
def test_a_transposed_square_matrix_is_named(names: tuple[str, ...]) -> None:
    sae, x = _fitting(features=WIDTH)
    sae = replace(sae, stated_fvu=measure(sae, x).fvu)
    weights = sae.tensors() | {name: sae.tensors()[name].T.contiguous() for name in names}
    turned = replace(sae, W_enc=weights["W_enc"], W_dec=weights["W_dec"])
    with pytest.raises(SAEMismatch, match=f"With {' and '.join(names)} turned round"):
        check_reconstruction(turned, x, "layer 1")


def test_a_square_sae_at_the_wrong_site_is_not_called_transposed() -> None:
    sae, _ = _fitting(features=WIDTH)
    with pytest.raises(SAEMismatch, match="The site is wrong, or a matrix"):
        check_reconstruction(sae, -1.0 * random_activations(200, width=WIDTH).abs() - 5.0, "layer 4")


def _unfamiliar() -> tuple[SparseAutoencoder, Tensor, float]:
    """A square SAE that states a low FVU, activations of other text at its site, and its FVU there."""
    sae, x = _fitting(features=WIDTH)
    other = x + 0.6 * random_activations(len(x), 9, WIDTH)
    return replace(sae, stated_fvu=0.02), other, measure(sae, other).fvu


def test_other_text_than_it_was_trained_on_is_judged_by_the_other_sites() -> None:
    sae, x, fvu = _unfamiliar()
    assert largest_fvu(sae.stated_fvu) < fvu < UNFAMILIAR_FVU
    with pytest.raises(SAEMismatch, match=r"measured there on ordinary text.*at most 0\.17 is accepted"):
        check_reconstruction(sae, x, "layer 1")
    around = {"layer 0": 1.2 * fvu, "layer 2": fvu}
    assert check_reconstruction(sae, x, "layer 1", "a text", lambda: around).fvu == fvu
    assert check_reconstruction(sae, x, "layer 1", "a text", dict).fvu == fvu
    better = around | {"layer 3": 0.9 * fvu}
    with pytest.raises(SAEMismatch, match=f"on a text.*At layer 3 it would be {0.9 * fvu:.3g}: the site"):
        check_reconstruction(sae, x, "layer 1", "a text", lambda: better)


def test_other_text_hides_no_transposed_matrix() -> None:
    sae, x, fvu = _unfamiliar()
    turned = replace(sae, W_dec=sae.W_dec.T.contiguous())
    with pytest.raises(SAEMismatch, match=f"With W_dec turned round it would be {fvu:.3g}"):
        check_reconstruction(turned, x, "layer 1", "a text", dict)


def test_other_text_does_not_excuse_everything() -> None:
    sae, x, _ = _unfamiliar()
    sae = replace(sae, W_dec=0.1 * sae.W_dec)
    fvu = measure(sae, x).fvu
    assert UNFAMILIAR_FVU < 0.97 * fvu < 1.0
    with pytest.raises(SAEMismatch, match=r"at most 0\.75 is accepted.*The site is wrong, or"):
        check_reconstruction(sae, x, "layer 1", "a text", lambda: {"layer 3": 0.97 * fvu})


@pytest.mark.parametrize(
    ("stated", "limit"), [(None, 1.0), (0.0, 0.15), (0.1, 0.25), (0.15, 0.30), (0.3, 0.6)]
)
def test_largest_fvu(stated: float | None, limit: float) -> None:
    assert largest_fvu(stated) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.ones(1, 10), "at least two tokens"),
        (torch.ones(5, 10), "do not vary"),
        (torch.full((5, 10), torch.nan), "not finite"),
        (torch.ones(5, 9), "activations of width 10"),
    ],
)
def test_activations_that_tell_nothing(activations: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(random_sae(), activations)
