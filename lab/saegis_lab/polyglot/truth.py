"""Ground truth for every token: which subject, language and role the corpus gave it, beside its feature
activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saegis_lab.polyglot.corpus import Document, Segment
from saegis_lab.training.feature_batches import feature_batches
from saegis_server.sae.autoencoder import SparseAutoencoder
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
    place, found = 0, []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        while place + 1 < len(spans) and max(start, end - 1) >= spans[place][1]:
            place += 1
        found.append(LabelledToken(token, start, end, spans[place][2]))
    return found


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
        for found in feature_batches(model, site, sae, rows, batch_tokens=batch * max(map(len, rows))):
            pairs = zip(found.texts.tolist(), found.places.tolist(), strict=True)
            tokens = [group[text][place] for text, place in pairs]
            yield LabelledFeatures(tokens, found.activations, found.texts + begin)
        begin += len(group)
