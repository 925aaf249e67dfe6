"""Ground truth of every token, as the corpus has it, and from it labels of the reference SAE's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.corpus import Document, Segment
from saegis_lab.polyglot.lexicon import ENGLISH_NAMES, lexicon
from saegis_lab.training.activations import feature_batches
from saegis_lab.training.labels import make_labels
from saegis_lab.training.statistics import FeatureStatistics, VocabularyCounts
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.sae.labels import Labels
from saegis_server.steering.site import Site


@dataclass(frozen=True)
class LabelledToken:
    """One token of a document: its id, its characters [start, end), and the segment that it begins in."""

    token: int
    start: int
    end: int
    segment: Segment


def labelled_tokens(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[LabelledToken]:
    """The document's tokens with their ground truth. A token belongs to the segment that holds its last
    character."""
    encoded = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
    spans = list(document.spans())
    place, tokens = 0, []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        while place + 1 < len(spans) and max(start, end - 1) >= spans[place][1]:
            place += 1
        tokens.append(LabelledToken(token, start, end, spans[place][2]))
    return tokens


@dataclass(frozen=True)
class LabelledFeatures:
    """Tokens of a batch with their ground truth: `tokens` of length n, feature activations [n, m], and the
    number of each token's document, int64 [n]. Both tensors lie on the model's device."""

    tokens: list[LabelledToken]
    activations: Tensor
    documents: Tensor


@torch.no_grad()
def labelled_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sae: SparseAutoencoder,
    site: Site,
    documents: Iterable[Document],
    batch: int = 64,
) -> Iterator[LabelledFeatures]:
    """Activations at `site` and truth for `documents`, which run through the model `batch` at a time, without
    the beginning-of-sequence tokens. Documents are numbered from 0."""
    stream = iter(documents)
    begin = 0
    while group := [labelled_tokens(tokenizer, document) for document in islice(stream, batch)]:
        rows = [[token.token for token in row] for row in group]
        for features in feature_batches(model, site, sae, rows, batch_tokens=batch * max(map(len, rows))):
            pairs = zip(features.texts.tolist(), features.places.tolist(), strict=True)
            tokens = [group[text][place] for text, place in pairs]
            yield LabelledFeatures(tokens, features.activations, features.texts + begin)
        begin += len(group)


HARMFUL_SUBJECTS = "harmful subjects (harmful)"


@cache
def _subject_name(key: str) -> str:
    subject = lexicon()["en"].subjects[key]
    return subject.about.removeprefix("the ") + (" (harmful)" if subject.harmful else "")


def truth_of(segment: Segment) -> TokenTruth:
    """What is known of a token of `segment`. Its concepts are whether it is harmful, its language, its role,
    its subject, and that subject in that language."""
    concepts = [HARMFUL_SUBJECTS] if segment.harmful else []
    if segment.language is not None:
        concepts.append(ENGLISH_NAMES[segment.language])
    if segment.role in ("question", "refusal"):
        concepts.append(segment.role)
    if segment.language is not None and segment.subject is not None:
        name = _subject_name(segment.subject)
        concepts += [name, f"{name} in {ENGLISH_NAMES[segment.language]}"]
    subject = segment.subject or "" if segment.language is not None else ""
    return TokenTruth(tuple(concepts), subject, segment.language or "", segment.harmful)


def reference_labels(
    batches: Iterable[LabelledFeatures],
    tokenizer: PreTrainedTokenizerBase,
    features: int,
    device: torch.device | str = "cpu",
) -> Labels:
    """A label for each of the `features` features, by `make_labels`; the batches lie on `device`."""
    statistics = FeatureStatistics(features, device)
    vocabulary = VocabularyCounts(features, len(tokenizer), device)
    for batch in batches:
        truths = [truth_of(token.segment) for token in batch.tokens]
        ids = torch.tensor([token.token for token in batch.tokens], dtype=torch.int64)
        statistics.add(batch.activations, truths)
        vocabulary.add(ids, batch.activations, [truth.language for truth in truths])
    return make_labels(statistics, vocabulary, tokenizer)
