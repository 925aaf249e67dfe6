"""Candidates: the features that fire on the texts of a harmful subject in every language that takes part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.records import Record
from saegis_lab.training.activations import FeatureBatch
from saegis_lab.training.texts import LabelledText


@dataclass(frozen=True, slots=True)
class Firings:
    """What features do on texts. fired: bool [texts, m], whether a feature fires at any token of a text;
    largest: float32 [m], its largest activation, 0 where it never fires; peaks: float32 [texts, m], its
    largest activation in each text."""

    peaks: Tensor

    @property
    def fired(self) -> Tensor:
        return self.peaks > 0.0

    @property
    def largest(self) -> Tensor:
        return self.peaks.amax(0)


def firings(batches: Iterable[FeatureBatch], texts: int, features: int) -> Firings:
    """The firings on so many texts, from all of their tokens that count."""
    peaks = torch.zeros(texts, features)
    for batch in batches:
        numbers = batch.texts.cpu()[:, None].expand(-1, features)
        peaks.scatter_reduce_(0, numbers, batch.activations.float().cpu(), "amax")
    return Firings(peaks)


@dataclass(frozen=True, slots=True)
class Candidate(Record):
    """A feature with the harmful subject that it stands for, and its score there in the worst language.
    quiet: up to which activation a filter leaves it alone, whatever its setting."""

    feature: int
    subject: str
    score: float
    quiet: float = 0.0


def subject_scores(
    fired: Tensor, texts: Sequence[LabelledText], languages: Sequence[str], false_weight: float
) -> Mapping[str, Tensor]:
    """For every harmful label float64 [m]: the least over the languages of the share of the label's texts in
    which a feature fires, less `false_weight` times the share of harmless texts in which it does.

    fired: bool [texts, m]. Labels without a text in one of the languages are left out. Raises ValueError,
    naming the language, where one has no harmless or no harmful text.
    """
    of_language = {code: [text.language == code for text in texts] for code in languages}
    harmful = torch.tensor([text.harmful for text in texts])
    false = {}
    for code, mask in of_language.items():
        here = torch.tensor(mask)
        for kind, chosen in (("harmless", here & ~harmful), ("harmful", here & harmful)):
            if not bool(chosen.any()):
                raise ValueError(f"language {code!r} has no {kind} text; give some of both kinds")
        false[code] = fired[here & ~harmful].double().mean(0)
    scores = {}
    for label in sorted({text.label for text in texts if text.harmful}):
        of_label = harmful & torch.tensor([text.label == label for text in texts])
        groups = {code: of_label & torch.tensor(mask) for code, mask in of_language.items()}
        if all(bool(group.any()) for group in groups.values()):
            shares = [
                fired[group].double().mean(0) - false_weight * false[code] for code, group in groups.items()
            ]
            scores[label] = torch.stack(shares).amin(0)
    return scores


def quiet_features(peaks: Tensor, texts: Sequence[LabelledText], most: float, outliers: float) -> Tensor:
    """Which features reach at most `most` of their largest activation on harmful texts in all but the share
    `outliers` of the harmless ones, bool [m]; none that fire on no harmful text. peaks: float [texts, m]."""
    harmful = torch.tensor([text.harmful for text in texts])
    loud, quiet = peaks[harmful].amax(0), peaks[~harmful]
    left_out = int(outliers * len(quiet))
    return (loud > 0.0) & (quiet.topk(left_out + 1, dim=0).values[-1] <= most * loud)


def by_precision(scores: Mapping[str, Tensor], least: float, each: int) -> tuple[Candidate, ...]:
    """Up to `each` features a subject, best first, whose score is at least `least`.

    A feature that several subjects share stands once, with the subject in which it scores best.
    """
    best: dict[int, Candidate] = {}
    for subject, values in scores.items():
        ranked, features = values.sort(descending=True, stable=True)
        for value, feature in zip(ranked[:each].tolist(), features[:each].tolist(), strict=True):
            known = best.get(feature)
            if value >= least and (known is None or value > known.score):
                best[feature] = Candidate(feature, subject, value)
    return tuple(sorted(best.values(), key=lambda candidate: (candidate.subject, -candidate.score)))


def near_candidates(scores: Mapping[str, Tensor], recipe: FilterRecipe) -> tuple[Candidate, ...]:
    """Every feature whose best score is at least `recipe.near_score`: what effect may choose among."""
    if not scores:
        return ()
    subjects = list(scores)
    values, places = torch.stack([scores[subject] for subject in subjects]).max(0)
    return tuple(
        Candidate(feature, subjects[int(places[feature])], float(values[feature]))
        for feature in (values >= recipe.near_score).nonzero()[:, 0].tolist()
    )
