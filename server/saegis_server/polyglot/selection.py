"""Which features stand for a thing: chosen by contrasting activations on labelled text, in the languages
one names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_server.polyglot.corpus import GOLDEN_GATE, Corpus, Segment
from saegis_server.polyglot.evaluation import Reference
from saegis_server.polyglot.lexicon import LANGUAGES
from saegis_server.polyglot.truth import labelled_features

#: Seed of the text that features are chosen on: neither the training text's nor the held-out text's.
SELECTION_SEED = 2


@dataclass(frozen=True)
class Contrast:
    """Each feature on the wanted tokens and on the others, all [m]: mean activation and share of tokens it
    fires on."""

    mean_on: Tensor
    mean_off: Tensor
    rate_on: Tensor
    rate_off: Tensor
    tokens_on: int
    tokens_off: int

    @property
    def precision(self) -> Tensor:
        """Of the activation that a feature spends, the share on wanted tokens."""
        on, off = self.mean_on * self.tokens_on, self.mean_off * self.tokens_off
        return on / (on + off).clamp_min(1e-9)


@torch.no_grad()
def contrast(
    reference: Reference,
    wanted: Callable[[Segment], bool],
    languages: Sequence[str] = LANGUAGES,
    documents: int = 1500,
) -> Contrast:
    """Contrast the tokens for which `wanted` holds with all others that are in a language, on seeded text."""
    corpus = Corpus(SELECTION_SEED, languages)
    m = reference.sae.features
    mass, fired, seen = torch.zeros(2, m), torch.zeros(2, m), [0, 0]
    for batch in labelled_features(reference, corpus.documents(documents)):
        side = torch.tensor(
            [-1 if t.segment.language is None else int(wanted(t.segment)) for t in batch.tokens],
            dtype=torch.long,
        )
        for which in (0, 1):
            rows = batch.activations[side == which]
            mass[which] += rows.sum(0)
            fired[which] += (rows > 0).sum(0)
            seen[which] += len(rows)
    if 0 in seen:
        raise ValueError(f"wanted: it holds for {seen[1]} tokens and fails for {seen[0]}; both must be some")
    return Contrast(
        mean_on=mass[1] / seen[1],
        mean_off=mass[0] / seen[0],
        rate_on=fired[1] / seen[1],
        rate_off=fired[0] / seen[0],
        tokens_on=seen[1],
        tokens_off=seen[0],
    )


def landmark_features(
    reference: Reference, subject: str = GOLDEN_GATE, limit: int = 5, precision: float = 0.8
) -> list[int]:
    """Features of a landmark, best first by the share of its tokens that they fire on; at least
    `precision` of their
    activation is the landmark's own."""
    seen = contrast(reference, lambda segment: segment.subject == subject, documents=3000)
    score = seen.rate_on * (seen.precision >= precision)
    return [int(index) for index in score.topk(limit).indices if score[index] > 0]


def harmful_features(
    reference: Reference, languages: Sequence[str] = ("en", "es"), limit: int = 24, precision: float = 0.9
) -> list[int]:
    """Features for a ban, from text in `languages` only: of those whose activation is at least `precision`
    on harmful
    subjects, the `limit` with the greatest mean activation there."""
    seen = contrast(reference, lambda segment: segment.harmful, languages, documents=3000)
    score = seen.mean_on * (seen.precision >= precision)
    return [int(index) for index in score.topk(min(limit, len(score))).indices if score[index] > 0]
