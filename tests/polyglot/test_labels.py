"""Labels and selection: features of built-in meaning get the label, precision and recall that they must."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from saegis_lab.polyglot.corpus import Corpus
from saegis_lab.polyglot.labels import (
    LabelledFeatures,
    LabelledToken,
    labelled_features,
    labelled_tokens,
    reference_labels,
    truth_of,
)
from saegis_lab.polyglot.recipe import CHOSEN_FROM, Recipe, Seeds
from saegis_lab.polyglot.steps import choice_statistics
from saegis_lab.training.selection import contrast
from saegis_server.engine.torch.loading import load_model
from saegis_server.reference import MODEL, SAE
from saegis_server.sae.files import load_sae
from saegis_server.sae.labels import FeatureLabel, Labels
from saegis_server.steering.site import Site

TOKENIZER = AutoTokenizer.from_pretrained(str(MODEL))
#: What the built-in features fire on.
RULES: list[Callable[[LabelledToken], bool]] = [
    lambda t: t.segment.subject == "cat",
    lambda t: t.segment.language == "fr",
    lambda t: t.segment.harmful,
    lambda t: t.segment.role == "refusal",
    lambda t: t.segment.subject == "poison" and t.segment.language == "es",
    lambda t: t.segment.subject == "golden_gate" and t.segment.language != "ru",
    lambda t: t.token == TOKENIZER("?", add_special_tokens=False)["input_ids"][0],
    lambda t: False,
]


def corpus_tokens() -> list[LabelledToken]:
    return [t for d in Corpus(9).documents(600) for t in labelled_tokens(TOKENIZER, d)]


@pytest.fixture(scope="module")
def labels() -> list[FeatureLabel]:
    batches = []
    for start in (0, 300):
        documents = Corpus(9).documents(300, start)
        numbered = [(n, t) for n, d in enumerate(documents) for t in labelled_tokens(TOKENIZER, d)]
        tokens = [token for _, token in numbered]
        activations = torch.tensor([[2.0 * rule(token) for rule in RULES] for token in tokens])
        batches.append(LabelledFeatures(tokens, activations, torch.tensor([n for n, _ in numbered])))
    return list(reference_labels(batches, TOKENIZER, len(RULES)))


def test_each_feature_is_named_for_what_it_fires_on(labels: list[FeatureLabel]) -> None:
    assert [label.label for label in labels] == [
        "cat",
        "French",
        "harmful subjects (harmful)",
        "refusal",
        "poison (harmful) in Spanish",
        "Golden Gate Bridge",
        "token '?'",
        "never fires",
    ]
    assert [label.harmful for label in labels] == [False, False, True, False, True, False, False, False]


def test_precision_recall_and_density_are_the_counted_ones(labels: list[FeatureLabel]) -> None:
    assert all(label.precision == 1.0 for label in labels[:7])
    assert all(set(label.precision_by_language.values()) == {1.0} for label in labels[:7])
    assert labels[0].recall
    assert set(labels[0].recall.values()) == {1.0}
    assert labels[5].recall["ru"] == 0.0
    assert labels[5].recall["zh"] == 1.0
    assert "ru" not in labels[5].precision_by_language
    assert labels[6].recall["en"] == 1.0
    assert labels[1].languages == ("fr",)
    assert labels[4].subjects == ("poison",)
    assert labels[0].max_activation == 2.0
    tokens = corpus_tokens()
    expected = sum(t.segment.subject == "cat" for t in tokens) / len(tokens)
    assert labels[0].density == pytest.approx(expected, abs=1e-6)


def test_labels_are_saved_and_loaded(labels: list[FeatureLabel], tmp_path: Path) -> None:
    Labels(labels).save(tmp_path)
    assert list(Labels.load(tmp_path, len(RULES))) == labels


def test_what_is_known_of_a_token_is_what_the_corpus_says() -> None:
    for token in corpus_tokens():
        truth, segment = truth_of(token.segment), token.segment
        assert (truth.language, truth.harmful) == (segment.language or "", segment.harmful)
        assert ("harmful subjects (harmful)" in truth.concepts) == segment.harmful
        assert bool(truth.subject) == (segment.subject is not None and segment.language is not None)
        assert len(set(truth.concepts)) == len(truth.concepts)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(MODEL), dtype=torch.float32)
    return model


def test_labelled_features_are_those_of_each_document_by_itself(reference: PreTrainedModel) -> None:
    sae = load_sae(SAE)
    site = Site.parse(sae.hook_name or "")
    documents = list(Corpus(2).documents(7))
    batches = list(labelled_features(reference, TOKENIZER, sae, site, documents, batch=3))
    seen = [
        (number, token, row)
        for batch in batches
        for number, token, row in zip(batch.documents.tolist(), batch.tokens, batch.activations, strict=True)
    ]
    for number, document in enumerate(documents):
        tokens = labelled_tokens(TOKENIZER, document)
        mine = [(token, row) for at, token, row in seen if at == number]
        assert [token for token, _ in mine] == tokens[1:]
        ids = torch.tensor([[token.token for token in tokens]])
        with torch.no_grad():
            states = reference(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        expected = sae.encode(states[site.layer + 1][0, 1:])
        assert torch.allclose(torch.stack([row for _, row in mine]), expected, atol=2e-2, rtol=1e-3)


def test_the_choice_reads_the_languages_named_and_no_others() -> None:
    sae = load_sae(SAE)
    recipe = replace(Recipe(), choice_documents=40)
    statistics = choice_statistics(load_model(str(MODEL)), sae, recipe, Seeds.of(0))
    assert {group.language for group in statistics.groups} <= {*CHOSEN_FROM, ""}
    tokens = [
        token
        for document in Corpus(Seeds.of(0).choice, CHOSEN_FROM).documents(40)
        for token in labelled_tokens(TOKENIZER, document)[1:]
    ]
    found = contrast(statistics, lambda truth: truth.harmful, CHOSEN_FROM)
    for code, each in found.items():
        there = [token.segment for token in tokens if token.segment.language == code]
        assert each.tokens_on == sum(segment.harmful for segment in there)
        assert each.tokens_off == sum(not segment.harmful for segment in there)
