"""The canonical SAE: its equations against a float64 loop, its probes against its encoder, its checks."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity, SiteTable, TableView
from tests.sae.sae_cases import FEATURES, WIDTH, build, random_activations, random_sae, random_tensors
from tests.steering import cases

forms = {
    "architecture": st.sampled_from(Architecture),
    "norm": st.sampled_from(Norm),
    "apply_b_dec": st.booleans(),
    "seed": st.integers(0, 10_000),
}


def _naive_activation(sae: SparseAutoencoder, x: list[float], feature: int) -> tuple[float, float]:
    """One feature of one token by the book, in Python floats, and how far from its gate it is."""
    mean = sum(x) / len(x)
    if sae.norm is Norm.CONSTANT_NORM:
        length = math.sqrt(sum(value * value for value in x))
        x = [value * math.sqrt(len(x)) / length for value in x]
    elif sae.norm is Norm.LAYER_NORM:
        deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / (len(x) - 1))
        x = [(value - mean) / (deviation + 1e-5) for value in x]
    if sae.apply_b_dec_to_input:
        x = [value - bias for value, bias in zip(x, sae.b_dec.tolist(), strict=True)]
    q = sum(value * weight for value, weight in zip(x, sae.W_enc[:, feature].tolist(), strict=True))
    weights = {
        name: tensor[feature].item()
        for name, tensor in sae.tensors().items()
        if tensor.ndim == 1 and name != "b_dec"
    }
    if sae.architecture is Architecture.GATED:
        gate = q + weights["b_gate"]
        return (max(q * math.exp(weights["r_mag"]) + weights["b_mag"], 0.0) if gate > 0 else 0.0), gate
    p = q + weights["b_enc"]
    if sae.architecture is Architecture.JUMPRELU:
        return (max(p, 0.0) if p > weights["threshold"] else 0.0), p - weights["threshold"]
    return max(p, 0.0), p


@settings(max_examples=60, deadline=None)
@given(**forms)
def test_encode_is_the_equation(architecture: Architecture, norm: Norm, apply_b_dec: bool, seed: int) -> None:
    sae = random_sae(architecture, seed, norm=norm, apply_b_dec_to_input=apply_b_dec)
    x = random_activations(3, seed + 1)
    found = sae.encode(x)
    for token in range(3):
        for feature in range(FEATURES):
            wanted, margin = _naive_activation(sae, x[token].tolist(), feature)
            if abs(margin) > 1e-5:
                assert found[token, feature].item() == pytest.approx(wanted, abs=2e-5, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(**forms)
def test_probe_reads_and_writes_its_feature(
    architecture: Architecture, norm: Norm, apply_b_dec: bool, seed: int
) -> None:
    sae = random_sae(architecture, seed, norm=norm, apply_b_dec_to_input=apply_b_dec)
    x = random_activations(8, seed + 1)
    features = [seed % FEATURES, (seed * 7 + 3) % FEATURES]
    probes = tuple(sae.probe(feature) for feature in features)
    table = SiteTable(1, WIDTH, Capacity(edits=2, rules=2, bans=2, watches=2))
    table.write(0, SiteProgram(watches=probes), None)
    view = TableView(table.edits, table.rules, table.bounds, table.watches, table.guards)
    _, readings = cases.applied(x[None], view, torch.zeros(1, 8, dtype=torch.bool), frozenset(Norm))
    f = sae.encode(x)
    for index, feature in enumerate(features):
        read = readings.watched_before[0, :, index]
        # At the gate itself the two orders of summation may decide differently; f is then far from 0.
        near = torch.tensor([abs(_naive_activation(sae, row, feature)[1]) < 1e-5 for row in x.tolist()])
        torch.testing.assert_close(read[~near], f[~near, feature], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(probes[index].write, sae.W_dec[feature], rtol=0.0, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(architecture=forms["architecture"], apply_b_dec=forms["apply_b_dec"], seed=forms["seed"])
def test_limit_is_where_the_feature_stops_to_be_active(
    architecture: Architecture, apply_b_dec: bool, seed: int
) -> None:
    """The right side of a ban's half-space, met from both sides."""
    sae = random_sae(architecture, seed, apply_b_dec_to_input=apply_b_dec)
    feature = seed % FEATURES
    probe = sae.probe(feature)
    x = random_activations(6, seed)
    towards = probe.read / probe.read.square().sum()
    for side, active in ((-1e-3, False), (1e-3, True)):
        at_limit = x + (probe.limit + side - x @ probe.read)[:, None] * towards
        assert ((sae.encode(at_limit)[:, feature] > 0.0) == active).all()


@settings(max_examples=40, deadline=None)
@given(norm=st.sampled_from(Norm), seed=st.integers(0, 10_000))
def test_decode_of_one_more_feature_adds_its_scaled_row(norm: Norm, seed: int) -> None:
    """§4.9 of the formats: Δx = s(x)·Δf·W_dec[i]."""
    sae = random_sae(seed=seed, norm=norm)
    x = random_activations(4, seed)
    f = sae.encode(x)
    more = f.clone()
    more[:, 5] += 2.0
    scale = {
        Norm.NONE: torch.ones(4, 1),
        Norm.CONSTANT_NORM: x.norm(dim=1, keepdim=True) / WIDTH**0.5,
        Norm.LAYER_NORM: x.std(1, keepdim=True),
    }[norm]
    moved = sae.decode(more, x) - sae.decode(f, x)
    torch.testing.assert_close(moved, 2.0 * scale * sae.W_dec[5], rtol=1e-4, atol=1e-4)


def test_other_dtypes_are_encoded_in_float32() -> None:
    sae = random_sae()
    x = random_activations(4).bfloat16()
    torch.testing.assert_close(sae.encode(x), sae.encode(x.float()), rtol=0.0, atol=0.0)
    assert sae.encode(x).dtype == torch.float32
    assert sae.encode(x[None]).shape == (1, 4, FEATURES)


@pytest.mark.parametrize("feature", [-1, FEATURES, 10**12])
def test_probe_refuses_a_feature_that_does_not_exist(feature: int) -> None:
    with pytest.raises(
        IndexError, match=rf"feature {feature} does not exist: the SAE polly has features 0 to 23"
    ):
        random_sae(name="polly").probe(feature)


def test_probe_keys_tell_features_and_saes_apart() -> None:
    sae, other = random_sae(seed=1), random_sae(seed=2)
    keys = {sae.probe(0).key, sae.probe(1).key, other.probe(0).key}
    assert len(keys) == 3
    assert sae.probe(0).key == random_sae(seed=1).probe(0).key
    assert replace(sae, digest="ab" * 32).probe(7).key == f"sae:{'ab' * 32}:7"


def test_digest_without_files_covers_weights_and_form() -> None:
    sae = random_sae()
    forms = [random_sae(norm=Norm.LAYER_NORM), random_sae(apply_b_dec_to_input=False), random_sae(seed=9)]
    assert len({sae.digest, *(form.digest for form in forms)}) == 4


def test_folded_bias_is_summed_in_float64() -> None:
    tensors = random_tensors(Architecture.STANDARD, 0)
    tensors["b_dec"] = torch.full((WIDTH,), 1.0)
    tensors["b_dec"][:3] = torch.tensor([3e7, 1.0, -3e7])
    tensors["W_enc"] = torch.ones(WIDTH, FEATURES)
    sae = build(Architecture.STANDARD, tensors)
    exact = tensors["b_enc"][0].item() - (WIDTH - 2)
    assert sae.probe(0).gate_bias == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threshold", None, "jumprelu needs threshold"),
        ("r_mag", torch.zeros(FEATURES), "jumprelu has no r_mag"),
        ("W_enc", torch.zeros(FEATURES, WIDTH), r"W_enc has the shape \[24, 10\].*it is transposed"),
        ("W_dec", torch.zeros(WIDTH, FEATURES), r"W_dec has the shape \[10, 24\].*it is transposed"),
        ("W_dec", torch.zeros(FEATURES, WIDTH + 1), r"W_dec has the shape \[24, 11\]; \[24, 10\]"),
        ("b_enc", torch.zeros(FEATURES, 1), r"b_enc has the shape \[24, 1\], not 1 dimension$"),
        ("b_dec", torch.zeros(()), r"b_dec has the shape \[\], not 1 dimension$"),
        ("W_enc", torch.zeros(FEATURES), r"W_enc has the shape \[24\], not 2 dimensions"),
        ("b_enc", torch.zeros(FEATURES, dtype=torch.float64), "b_enc is torch.float64, not float32"),
        ("threshold", torch.full((FEATURES,), torch.nan), "threshold holds numbers that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Architecture.JUMPRELU, {**random_tensors(Architecture.JUMPRELU, 0), name: value})


@pytest.mark.parametrize("r_mag", [200.0, -200.0])
def test_gain_must_be_a_number_of_float32(r_mag: float) -> None:
    tensors = random_tensors(Architecture.GATED, 0)
    tensors["r_mag"][4] = r_mag
    with pytest.raises(ValueError, match="r_mag holds numbers whose exponential is zero or infinite"):
        build(Architecture.GATED, tensors)


def test_biases_that_overflow_are_refused() -> None:
    tensors = random_tensors(Architecture.STANDARD, 0)
    tensors["W_enc"][0, 3] = tensors["b_dec"][0] = 1e30
    with pytest.raises(ValueError, match="b_dec·W_enc is not finite"):
        build(Architecture.STANDARD, tensors)
    assert build(Architecture.STANDARD, tensors, apply_b_dec_to_input=False).probe(3).gate_bias


def test_wrong_widths_are_refused() -> None:
    sae = random_sae()
    with pytest.raises(ValueError, match=r"x has the shape \[3, 9\]; this SAE reads activations of width 10"):
        sae.encode(torch.zeros(3, 9))
    with pytest.raises(ValueError, match="f has 5 features; this SAE has 24"):
        sae.decode(torch.zeros(3, 5), torch.zeros(3, WIDTH))


@pytest.mark.parametrize("architecture", Architecture)
@pytest.mark.parametrize("norm", Norm)
def test_some_features_are_encoded_as_all_are(architecture: Architecture, norm: Norm) -> None:
    sae, x = random_sae(architecture, norm=norm), random_activations(40)
    chosen = [FEATURES - 1, 3, 3, 0]
    few = sae.only(chosen)
    assert (few.features, few.name) == (4, sae.name)
    torch.testing.assert_close(few.encode(x), sae.encode(x)[:, chosen])
    with pytest.raises(IndexError, match="feature 24 does not exist"):
        sae.only([0, FEATURES])
