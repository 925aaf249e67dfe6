"""Models: what is served is what Transformers' own code writes, family by family, and the rest is refused."""

import logging
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from saegis_server.engine.sites import all_sites
from saegis_server.engine.torch.attention import UnsupportedModelError
from saegis_server.engine.torch.places import check_places
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.steering.site import Place, Site, SiteError
from saegis_server.steering.table import Capacity
from scripts.gen_models import FILE, page
from tests.engine import tiny
from tests.engine.model_table import TABLE, Row
from tests.engine.small_models import SmallModel, outcome

_QUICK = ("Llama 4", "Phi 3, long", "LFM 2", "GPT-J")


def is_as_promised(row: Row, count: int) -> None:
    """Serve a row's model, steered at places of every kind that it has."""
    wanted = (Site(0, Place.MLP_OUT), Site(1, Place.RESID_MID), Site(1, Place.RESID_POST))
    names = tuple(str(site) for site in wanted if site.place not in row.lacks)
    found = outcome(row.small, names, min(count, row.small.served - max(row.small.prompts)))
    assert found.word == ("exact" if row.refused is None else "refused"), found.why
    assert (row.refused or "") in found.why


@pytest.mark.parametrize("row", [row for row in TABLE if row.name in _QUICK], ids=str)
def test_a_few_models_are_as_the_table_says(row: Row) -> None:
    is_as_promised(row, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_every_model_is_as_the_table_says(row: Row) -> None:
    is_as_promised(row, 40)


@pytest.mark.parametrize("row", [row for row in TABLE if row.refused is None], ids=str)
def test_a_row_is_tried_in_the_variant_that_it_states(row: Row) -> None:
    """What a row changes is in its model's configuration, and is a setting of such models."""
    config = row.small.build().config.get_text_config()
    found, known = config.to_dict(), type(config)().to_dict()
    for name, value in row.small.changes.items():
        parts = value.items() if isinstance(value, dict) else ()
        assert name in known
        assert found[name] == value or (parts and all(found[name][key] == each for key, each in parts))


def built(kind: str, special: str) -> Any:
    """The model of a row; of any type, as Transformers types few of its methods."""
    return next(row for row in TABLE if (row.small.kind, row.special) == (kind, special)).small.build()


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_a_rope_that_is_stated_turns_otherwise_than_a_plain_one(kind: str) -> None:
    models = (built("llama", special) for special in (f"RoPE of the kind {kind}", ""))
    stated, plain = (model.get_decoder().rotary_emb.inv_freq for model in models)
    assert not torch.allclose(stated, plain)


def test_tied_embeddings_are_one_tensor_and_layers_in_turn_are_no_parallel_ones() -> None:
    tied, serial = built("llama", "tied embeddings"), built("gpt_neox", "no parallel layers")
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    assert not any(layer.use_parallel_residual for layer in serial.get_decoder().layers)


@pytest.mark.nightly
@pytest.mark.parametrize("row", [row for row in TABLE if row.refused is None], ids=str)
def test_the_places_of_a_model_are_as_the_table_says(row: Row) -> None:
    """The streams are Transformers' hidden states; what attention and the MLP add make up the difference."""
    model, tokens = row.small.build(), tiny.prompt_of(1, 20)
    every = [site for site in all_sites(model) if site.place not in row.lacks]
    through = [] if Place.MLP_IN_TO_OUT in row.lacks else [Site(1, Place.MLP_IN_TO_OUT)]
    check_places(model, [*every, *through])
    for place in row.lacks:
        with pytest.raises(SiteError):
            check_places(model, [Site(0, place)])
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    sites = dict.fromkeys(every, tiny.PLAIN)
    found = Step(model, sites, Slots(model, tuple(sites), 2, 32, Capacity()), False).capture(tokens)
    for layer in range(2):
        torch.testing.assert_close(
            found[Site(layer, Place.RESID_PRE)], hidden[layer][0], atol=1e-4, rtol=1e-4
        )
        if Place.MLP_OUT not in row.lacks:
            before, attention, mlp, after = (
                found[Site(layer, place)]
                for place in (Place.RESID_PRE, Place.ATTN_OUT, Place.MLP_OUT, Place.RESID_POST)
            )
            torch.testing.assert_close(before + attention + mlp, after, atol=1e-4, rtol=1e-4)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_every_kind_that_transformers_knows_is_exact_or_refused(kind: str) -> None:
    """Without a site, as nothing but the comparison at the start then looks at what a model writes."""
    small = SmallModel(kind)
    try:
        small.build()
    except Exception as error:
        logging.getLogger(__name__).info("%s", kind, exc_info=error)
        pytest.skip(f"no small one can be made: {type(error).__name__}")
    found = outcome(small, (), 16)
    assert found.word in ("exact", "refused"), found.why
    if found.word == "refused":
        assert found.why.count("\n") == 0


def test_a_model_that_is_refused_names_itself_and_why() -> None:
    """No layers and no sites are looked for in it."""
    model = SmallModel("gptj").build()
    with pytest.raises(UnsupportedModelError, match=r"^GPTJForCausalLM cannot be served: its code does not"):
        Slots(model, (), 2, 32, Capacity())


def test_the_page_of_models_is_that_of_the_table() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "run scripts/gen_models.py"
    assert sum(row.refused is None for row in TABLE) >= 45
