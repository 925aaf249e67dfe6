"""Labels of the reference SAE's features from the corpus: what it says of every token, in words."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from transformers import PreTrainedTokenizerBase

from saegis_lab.polyglot.corpus import Segment
from saegis_lab.polyglot.lexicon import ENGLISH_NAMES, lexicon
from saegis_lab.polyglot.truth import LabelledFeatures
from saegis_lab.training.feature_statistics import FeatureStatistics
from saegis_lab.training.labels import make_labels
from saegis_lab.training.token_truth import TokenTruth
from saegis_lab.training.vocabulary_counts import VocabularyCounts
from saegis_server.sae.labels import Labels

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
