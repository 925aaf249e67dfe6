"""The measure on held-out text, and the sample on which the server checks an SAE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from saegis_lab.training import held_out
from saegis_lab.training.held_out import choose_sample, held_out_activations, measure_held_out
from saegis_lab.training.texts import Encoder
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.site_reading import read_site
from saegis_server.sae.autoencoder import Architecture, SparseAutoencoder
from saegis_server.sae.checks import measure
from saegis_server.sae.errors import SAEMismatch
from saegis_server.steering.site import Site
from tests.engine import tiny
from tests.training.subjects import paragraphs

SITE = Site.parse("layers.1.resid_post")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel("tiny", tiny.model("gpt2"), tiny.tokenizer(), "digest", (tiny.EOS,), 256)


def read(loaded: LoadedModel, text: str) -> Tensor:
    """A text's activations without that of its first token."""
    return read_site(loaded.model, SITE, torch.tensor([loaded.tokenizer(text)["input_ids"]]))[0, 1:]


def partial_sae(kept: int) -> SparseAutoencoder:
    """Reconstructs the first `kept` coordinates, exactly, and a last feature that never fires."""
    eye = torch.eye(tiny.WIDTH)[:kept]
    rows = torch.cat((eye, -eye, eye[:1]))
    bias = torch.zeros(len(rows))
    bias[-1] = -1e6
    return SparseAutoencoder(
        Architecture.STANDARD,
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_dec=torch.zeros(tiny.WIDTH),
        b_enc=bias,
    )


def test_dead_is_the_share_that_fires_nowhere(loaded: LoadedModel) -> None:
    x = read(loaded, paragraphs(1)[0])
    found = measure_held_out(partial_sae(tiny.WIDTH), x)
    assert found.dead == pytest.approx(1 / (2 * tiny.WIDTH + 1), abs=0.02)
    assert found.fvu == pytest.approx(0.0, abs=1e-9)
    assert found.l0 == pytest.approx(tiny.WIDTH)
    assert found.tokens == len(x)


def test_no_more_is_read_than_is_measured(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MEASURED_TOKENS", 100)
    taken = 0

    def rows() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            taken += 1
            yield tiny.prompt_of(taken, 30)

    x = held_out_activations(loaded, SITE, rows(), frozenset())
    # Four rows of 30, without their first tokens.
    assert x.shape == (4 * 29, tiny.WIDTH)
    assert taken <= 5


def test_the_sample_is_the_longest_texts_most_usual_one(loaded: LoadedModel) -> None:
    texts = [text[:length] for text, length in zip(paragraphs(12), range(40, 160, 10), strict=True)]
    sae = partial_sae(24)
    by_fvu = {text: measure(sae, read(loaded, text)).fvu for text in texts[-8:]}
    for wanted, fvu in by_fvu.items():
        stated = replace(sae, stated_fvu=fvu)
        assert choose_sample(loaded, SITE, stated, Encoder(loaded.tokenizer, 256), texts) == wanted


def test_a_long_text_is_cut_to_a_sample(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "SAMPLE_TOKENS", 20)
    text = paragraphs(1)[0]
    sample = choose_sample(loaded, SITE, partial_sae(tiny.WIDTH), Encoder(loaded.tokenizer, 256), [text])
    assert text.startswith(sample)
    assert len(loaded.tokenizer(sample)["input_ids"]) == 20


def test_texts_without_tokens_are_an_error(loaded: LoadedModel) -> None:
    encoder = Encoder(loaded.tokenizer, 256)
    with pytest.raises(ValueError, match="no held-out text has three tokens"):
        choose_sample(loaded, SITE, partial_sae(24), encoder, ["", "a"])
    with pytest.raises(ValueError, match="fewer than two tokens"):
        held_out_activations(loaded, SITE, encoder.rows(["", "a"]), frozenset())


def test_an_sae_that_the_server_would_refuse_is_refused_here(loaded: LoadedModel) -> None:
    stated = replace(partial_sae(1), stated_fvu=0.01)
    with pytest.raises(SAEMismatch, match="does not fit the site"):
        choose_sample(loaded, SITE, stated, Encoder(loaded.tokenizer, 256), paragraphs(3))
