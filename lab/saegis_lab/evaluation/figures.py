"""Figures of a group of answers: how fluent they are as texts, and how often they repeat themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saegis_lab.evaluation.requests import Total
from saegis_lab.evaluation.units import repetition
from saegis_lab.records import Record


@dataclass(frozen=True, slots=True)
class TextFigures(Record):
    """Figures of answers as texts, whatever the prompts.

    answers: how many there are. repetition: mean share of word 3-grams that occurred before in their answer
    (of characters in scripts without spaces). perplexity: under the unsteered model, as answers to an empty
    message, pooled over all tokens; None where all answers are empty. perplexity_ratio: that, over the
    perplexity of ordinary answers in the same language; None where either is. empty: answers without a token.
    """

    answers: int
    repetition: float
    perplexity: float | None
    perplexity_ratio: float | None
    empty: int


def text_figures(
    texts: Sequence[str], likelihoods: Sequence[Total | None], ordinary: float | None
) -> TextFigures:
    """The figures of one answer or more.

    likelihoods: each text's, as `Requests.likelihoods` gives them. ordinary: the perplexity of ordinary
    answers, by which the ratio divides.
    """
    perplexity = Total.pooled(likelihoods).perplexity
    return TextFigures(
        answers=len(texts),
        repetition=mean(map(repetition, texts)),
        perplexity=perplexity,
        perplexity_ratio=None if perplexity is None or ordinary is None else perplexity / ordinary,
        empty=sum(likelihood is None for likelihood in likelihoods),
    )


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    gathered = list(values)
    return math.fsum(gathered) / len(gathered)
