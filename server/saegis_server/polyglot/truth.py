"""Ground truth for every token: which subject, language and role the corpus gave it, beside its feature
activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from saegis_server.polyglot.activations import residual
from saegis_server.polyglot.corpus import Document, Segment
from saegis_server.polyglot.evaluation import Reference


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
    """Tokens of a batch with their ground truth: `tokens` of length n, feature activations [n, m]."""

    tokens: list[LabelledToken]
    activations: Tensor


@torch.no_grad()
def labelled_features(
    reference: Reference, documents: Iterable[Document], batch: int = 64
) -> Iterator[LabelledFeatures]:
    """Activations and truth for `documents`, without the beginning-of-sequence tokens."""
    tokenizer = reference.tokenizer
    waiting: list[list[LabelledToken]] = []

    def flush() -> LabelledFeatures:
        length = max(map(len, waiting))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[t.token for t in row] + [pad] * (length - len(row)) for row in waiting])
        x = residual(reference.model, reference.layer, ids)
        kept = [(r, c) for r, row in enumerate(waiting) for c in range(1, len(row))]
        rows, columns = (torch.tensor(side) for side in zip(*kept, strict=True))
        tokens = [waiting[r][c] for r, c in kept]
        waiting.clear()
        return LabelledFeatures(tokens, reference.sae.encode(x[rows, columns]))

    for document in documents:
        waiting.append(labelled_tokens(tokenizer, document))
        if len(waiting) == batch:
            yield flush()
    if waiting:
        yield flush()
