"""Labels and selection: features of built-in meaning get the label, precision and recall that they must."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from saegis_server.polyglot.corpus import Corpus
from saegis_server.polyglot.labels import Label, make_labels, save_labels
from saegis_server.polyglot.pipeline import load_reference
from saegis_server.polyglot.selection import contrast
from saegis_server.polyglot.shipped import manifest, model_path, sae_path
from saegis_server.polyglot.truth import LabelledFeatures, LabelledToken, labelled_features, labelled_tokens

TOKENIZER = AutoTokenizer.from_pretrained(str(model_path()))
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


@pytest.fixture(scope="module")
def labels() -> list[Label]:
    batches = []
    for start in (0, 300):
        tokens = [t for d in Corpus(9).documents(300, start) for t in labelled_tokens(TOKENIZER, d)]
        activations = torch.tensor([[2.0 * rule(token) for rule in RULES] for token in tokens])
        batches.append(LabelledFeatures(tokens, activations))
    return make_labels(batches, TOKENIZER, len(RULES))


def test_each_feature_is_named_for_what_it_fires_on(labels: list[Label]) -> None:
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


def test_precision_recall_and_density_are_the_counted_ones(labels: list[Label]) -> None:
    assert all(label.precision == 1.0 for label in labels[:7])
    assert labels[0].recall
    assert set(labels[0].recall.values()) == {1.0}
    assert labels[5].recall["ru"] == 0.0
    assert labels[5].recall["zh"] == 1.0
    assert labels[1].languages == ("fr",)
    assert labels[4].subjects == ("poison",)
    assert labels[0].max_activation == 2.0
    tokens = [t for d in Corpus(9).documents(600) for t in labelled_tokens(TOKENIZER, d)]
    expected = sum(t.segment.subject == "cat" for t in tokens) / len(tokens)
    assert labels[0].density == pytest.approx(expected, abs=1e-6)


def test_the_file_has_one_line_a_feature(labels: list[Label], tmp_path: Path) -> None:
    save_labels(labels, tmp_path)
    lines = [
        json.loads(line) for line in (tmp_path / "features.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["feature"] for line in lines] == list(range(len(RULES)))
    assert lines[0]["recall"]["zh"] == 1.0


def test_contrast_counts_every_token_in_a_language_once() -> None:
    reference = load_reference(model_path(), sae_path(), manifest().layer)
    seen = contrast(reference, lambda segment: segment.harmful, ("en", "es"), documents=40)
    tokens = [
        t for b in labelled_features(reference, Corpus(2, ("en", "es")).documents(40)) for t in b.tokens
    ]
    assert seen.tokens_on == sum(t.segment.harmful for t in tokens)
    assert seen.tokens_on + seen.tokens_off == sum(t.segment.language is not None for t in tokens)
    assert ((seen.precision >= 0) & (seen.precision <= 1)).all()
    assert (seen.rate_on <= 1).all()
    with pytest.raises(ValueError, match="wanted: it holds for 0 tokens"):
        contrast(reference, lambda segment: False, ("en", "es"), documents=5)
