"""Sites: their names, and that each is the activation that it says in every family."""

from typing import Any

import pytest
import torch
from torch import nn

from saegis_server.engine.sites import decoder_layers, site_module
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.steering.site import Place, Site, SiteError
from saegis_server.steering.table import Capacity
from tests.engine import tiny
from tests.engine.small_models import SmallModel


@pytest.mark.parametrize("place", Place)
def test_both_spellings_of_every_place(place: Place) -> None:
    site = Site(12, place)
    assert str(site) == f"layers.12.{place}"
    assert Site.parse(str(site)) == Site.parse(site.transformer_lens) == site
    assert site.transformer_lens.startswith("blocks.12.")


@pytest.mark.parametrize(
    "name", ["layers.3", "model.layers.3", "transformer.h.3", "gpt_neox.layers.3", "model.layers.3.output"]
)
def test_a_bare_layer_is_its_output(name: str) -> None:
    assert Site.parse(name) == Site(3, Place.RESID_POST)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.input", Place.RESID_PRE),
        ("model.layers.3.post_feedforward_layernorm.output", Place.MLP_OUT),
        ("model.layers.3.post_feedforward_layernorm", Place.MLP_OUT),
        ("gpt_neox.layers.3.mlp", Place.MLP_OUT),
        ("gpt_neox.layers.3.attention.output", Place.ATTN_OUT),
        ("transformer.h.3.attn", Place.ATTN_OUT),
        ("model.layers.3.self_attn.o_proj.input", Place.ATTN_Z),
        ("transformer.h.3.attn.c_proj.input", Place.ATTN_Z),
        ("gpt_neox.layers.3.attention.dense.input", Place.ATTN_Z),
        ("blocks.3.attn.hook_z", Place.ATTN_Z),
        ("blocks.3.mlp.hook_in", Place.MLP_IN),
        ("model.layers.3.mlp.input", Place.MLP_IN),
        ("model.layers.3.pre_feedforward_layernorm", Place.MLP_IN),
        ("model.layers.3.pre_feedforward_layernorm.output", Place.MLP_IN),
        ("model.layers.3.pre_feedforward_layernorm.input", Place.RESID_MID),
        ("transformer.h.3.ln_2.input", Place.RESID_MID),
    ],
)
def test_a_module_is_its_output(name: str, place: Place) -> None:
    assert Site.parse(name) == Site(3, place)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "model.layers.1.self_attn.o_proj",
            "layers.1.mlp",
            "blocks.1.hook_mlp_in",
        ),
        *("", "3", "layers.-1.resid_post", "layers.x.resid_post", "layers.1.resid_middle", "layers.1."),
        *("blocks.1.resid_post", "blocks.1.hook_z", "layers.1.resid_post ", "model.layers.1.mlp"),
    ],
)
def test_other_names_are_refused_with_the_places(name: str) -> None:
    with pytest.raises(
        SiteError,
        match=", ".join(Place) + "|write layers",
    ):
        Site.parse(name)


def sites_of(family: str) -> list[Site]:
    """The sites of a tiny model of three layers."""
    lacking = {Place.MLP_IN_TO_OUT, *([Place.RESID_MID] if family == "gpt_neox" else [])}
    return [Site(layer, place) for layer in range(3) for place in Place if place not in lacking]


def captured(family: str, tokens: list[int]) -> dict[Site, torch.Tensor]:
    """The activations at every site of a tiny model."""
    model = tiny.model(family)
    sites = dict.fromkeys(sites_of(family), tiny.PLAIN)
    return Step(model, sites, Slots(model, tuple(sites), 2, 32, Capacity()), False).capture(tokens)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_site_is_the_activation_that_it_says(family: str) -> None:
    """The stream is Transformers' hidden states; what attention and the MLP add makes up the difference."""
    tokens = tiny.prompt_of(1, 20)
    found = captured(family, tokens)
    with torch.inference_mode():
        hidden = tiny.model(family)(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    for layer in range(3):
        before, attention, mlp, after = (
            found[Site(layer, place)]
            for place in (Place.RESID_PRE, Place.ATTN_OUT, Place.MLP_OUT, Place.RESID_POST)
        )
        torch.testing.assert_close(before, hidden[layer][0], atol=1e-4, rtol=1e-4)
        if layer < 2:  # the last one is normalised there
            torch.testing.assert_close(after, hidden[layer + 1][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(before + attention + mlp, after, atol=1e-4, rtol=1e-4)
        if (between := found.get(Site(layer, Place.RESID_MID))) is not None:
            torch.testing.assert_close(between, before + attention, atol=1e-4, rtol=1e-4)
        assert min(float(one.norm()) for one in (before, attention, mlp)) > 0.1


def test_in_gemma_2_a_contribution_is_what_comes_after_its_norm() -> None:
    model = tiny.model("gemma2")
    layer = decoder_layers(model)[1]
    assert site_module(model, Site(1, Place.ATTN_OUT)) == (layer.post_attention_layernorm, False)
    assert site_module(model, Site(1, Place.MLP_OUT)) == (layer.post_feedforward_layernorm, False)
    assert site_module(model, Site(1, Place.RESID_MID)) == (layer.pre_feedforward_layernorm, True)
    assert site_module(model, Site(1, Place.RESID_PRE)) == (layer, True)
    assert site_module(model, Site(1, Place.RESID_POST)) == (layer, False)


def test_what_a_model_lacks_is_refused() -> None:
    model = tiny.model()
    with pytest.raises(SiteError, match="layers 0 to 2"):
        site_module(model, Site(3, Place.RESID_POST))
    layer = decoder_layers(model)[1]
    del layer.mlp
    with pytest.raises(SiteError, match=r"layers\.1\.mlp_out does not exist in LlamaDecoderLayer"):
        site_module(model, Site(1, Place.MLP_OUT))
    with pytest.raises(
        SiteError, match=r"resid_mid does not exist: in GPTNeoXLayer attention and the MLP read"
    ):
        site_module(tiny.model("gpt_neox"), Site(1, Place.RESID_MID))
    phi = SmallModel("phi").build()
    with pytest.raises(SiteError, match=r"resid_mid does not exist: in PhiDecoderLayer no norm reads"):
        site_module(phi, Site(1, Place.RESID_MID))
    find: Any = model.get_decoder
    find().add_module("second", nn.ModuleList([*decoder_layers(model)]))
    with pytest.raises(SiteError, match="2 lists of 3 decoder layers"):
        decoder_layers(model)
