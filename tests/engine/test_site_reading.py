"""Activations read at sites against Transformers' own hidden states, and edits that later layers see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saegis_server.engine.torch.site_reading import edited, read_site, show_sites
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.engine.test_sites import sites_of


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_the_residual_stream_is_that_of_transformers(family: str) -> None:
    model = tiny.model(family)
    ids = torch.tensor([tiny.prompt_of(1, 12), tiny.prompt_of(2, 12)])
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    for name, expected in (("layers.1.resid_post", states[2]), ("layers.1.resid_pre", states[1])):
        assert torch.equal(read_site(model, Site.parse(name), ids), expected.detach())


@pytest.mark.parametrize("name", ["layers.1.resid_post", "layers.2.resid_pre", "layers.0.mlp_out"])
def test_an_edit_is_what_later_layers_see(name: str) -> None:
    """After the edit the site reads as edited; without it as before."""
    model, ids, site = tiny.model("qwen2"), torch.tensor([tiny.prompt_of(1, 9)]), Site.parse(name)
    before = model(ids).logits.detach()
    with torch.no_grad(), edited(model, site, lambda x: x + 1.0):
        changed = model(ids).logits
        assert torch.equal(read_site(model, site, ids), read_site(tiny.model("qwen2"), site, ids) + 1.0)
    assert not torch.allclose(changed, before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_all_sites_are_shown_in_one_pass_as_each_is_read_alone(family: str) -> None:
    model, ids = tiny.model(family), torch.tensor([tiny.prompt_of(1, 12)])
    shown: dict[Site, Tensor] = {}
    passes = []

    def run() -> None:
        passes.append(model(input_ids=ids, use_cache=False))

    show_sites(model, run, lambda site, x: shown.update({site: x.float().clone()}))
    assert len(passes) == 1
    assert set(shown) == set(sites_of(family))
    for site, x in shown.items():
        assert torch.equal(x, read_site(model, site, ids))
    shown.clear()
    model(input_ids=ids)
    assert not shown
