"""Detectors: how well features tell wanted texts from all others, and how well a linear probe does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from saegis_lab.evaluation.figures import mean
from saegis_lab.evaluation.linear_probe import fitted_probe
from saegis_lab.records import Record
from saegis_lab.training.activations import TokenBatch
from saegis_lab.training.texts import TokenTruth
from saegis_server.sae.autoencoder import SparseAutoencoder

#: How a text's activations become one vector: their mean, or the largest of each coordinate.
Pooling = Literal["mean", "max"]
#: The penalties on a probe's weights that are tried, the strongest first.
PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True, slots=True)
class ScaledFeature(Record):
    """A feature, and its largest activation on wanted texts in the choosing languages: the unit in which it
    counts. One that is 0 there counts nothing."""

    feature: int
    largest: float


@dataclass(frozen=True, slots=True)
class ChosenProbe(Record):
    """How the probe reads a text and how its weights are penalised: of all that were tried the best on the
    choosing languages. held_out: the mean area there, each half of the texts scored by a probe of the other.
    """

    pooling: Pooling
    penalty: float
    held_out: float


@dataclass(frozen=True, slots=True)
class DetectorRow(Record):
    """One language. wanted, others: how many texts of each kind were scored.

    features, probe: the area under the curve, which is the chance that a wanted text scores above another
    one, where a tie counts half; None without texts of both kinds. In a choosing language the probe's is of
    texts that it was not fitted on, half of them at a time.
    """

    language: str
    chose: bool
    wanted: int
    others: int
    features: float | None
    probe: float | None


@dataclass(frozen=True, slots=True)
class Detectors(Record):
    """Features as a detector of `wanted`, in words, against a probe at the same site.

    chosen_from: the languages that the features were chosen in, and the probe is fitted on. left_out: how
    many texts were not scored, since no token of theirs counts.
    """

    wanted: str
    site: str
    chosen_from: tuple[str, ...]
    features: tuple[ScaledFeature, ...]
    probe: ChosenProbe
    rows: tuple[DetectorRow, ...]
    left_out: int


class DetectorReadings:
    """Gathers, batch by batch, what detectors read of texts: the features at each token, and the mean and the
    largest of the activations in each text."""

    def __init__(self, sae: SparseAutoencoder, features: Sequence[int], texts: int) -> None:
        """sae: has these features alone, in this order (see coverage.with_features), and lies where the
        activations do; texts: how many there are."""
        self.features = tuple(features)
        self._sae = sae
        self._numbers: list[Tensor] = []
        self._activations: list[Tensor] = []
        self._sums = torch.zeros(texts, sae.width)
        self._largest = torch.full((texts, sae.width), -torch.inf)
        self._counts = torch.zeros(texts)

    def add(self, batch: TokenBatch) -> None:
        """Add tokens, each once, without the first of each text."""
        numbers, x = batch.texts.cpu(), batch.x.float().cpu()
        self._numbers.append(numbers)
        self._activations.append(self._sae.encode(batch.x).cpu())
        self._sums.index_add_(0, numbers, x)
        self._largest.scatter_reduce_(0, numbers[:, None].expand_as(x), x, "amax")
        self._counts.index_add_(0, numbers, torch.ones(len(numbers)))

    @property
    def read(self) -> Tensor:
        """Which texts have a token that counts, bool [texts]."""
        return self._counts > 0.0

    def pooled(self, pooling: Pooling) -> Tensor:
        """One vector for each text, float32 [texts, d]; of texts that are not read it means nothing."""
        return self._largest if pooling == "max" else self._sums / self._counts[:, None]

    def largest(self, texts: Tensor) -> Tensor:
        """Each feature's largest activation in some texts, bool [texts]; float32 [k], 0 if it never fires."""
        found = torch.zeros(len(self.features))
        for numbers, activations in zip(self._numbers, self._activations, strict=True):
            there = activations[texts[numbers]]
            if len(there):
                found = torch.maximum(found, there.amax(0))
        return found

    def scores(self, largest: Tensor) -> Tensor:
        """For each text the greatest, over its tokens, of the sum of the features' activations, each over its
        entry of `largest` [k]; float32 [texts]."""
        shares = torch.where(largest > 0.0, 1.0 / largest, 0.0)
        scores = torch.zeros(len(self._counts))
        for numbers, activations in zip(self._numbers, self._activations, strict=True):
            scores.scatter_reduce_(0, numbers, activations @ shares, "amax")
        return scores


def area_under_curve(wanted: Tensor, others: Tensor) -> float:
    """The share of pairs in which the wanted text's score [n] is above the other's [m]; a tie counts half.

    Exact. n and m are at least 1.
    """
    in_order = others.sort().values
    below = torch.searchsorted(in_order, wanted, right=False).sum()
    up_to = torch.searchsorted(in_order, wanted, right=True).sum()
    return int(below + up_to) / (2 * len(wanted) * len(others))


def compare_detectors(
    readings: DetectorReadings,
    truths: Sequence[TokenTruth],
    is_wanted: Callable[[TokenTruth], bool],
    words: str,
    chosen_from: Sequence[str],
    site: str,
) -> Detectors:
    """The features' detector and the probe, in every language of the texts. words: what is wanted, in words.

    Nothing in a language that did not take part decides anything. Raises ValueError, naming the language,
    where one of `chosen_from` has fewer than two texts of a kind, and where there is none.
    """
    if not chosen_from:
        raise ValueError("--chosen-from: name the languages that the features were chosen in")
    read = readings.read
    wanted = torch.tensor([is_wanted(truth) for truth in truths]) & read
    others = ~wanted & read
    of_language = {
        code: torch.tensor([truth.language == code for truth in truths])
        for code in sorted({truth.language for truth in truths} | set(chosen_from))
    }
    chose = torch.stack([of_language[code] for code in chosen_from]).any(0)
    halves = _halves(wanted, others, {code: of_language[code] for code in chosen_from}, words)
    probe, held_out = _chosen_probe(readings, wanted, halves, of_language, chosen_from)
    x = readings.pooled(probe.pooling)
    train = chose & read
    probed = fitted_probe(x[train], wanted[train], probe.penalty).scores(x)
    largest = readings.largest(wanted & chose)
    scores = readings.scores(largest)
    rows = []
    for code, there in of_language.items():
        kinds = wanted & there, others & there
        both = all(bool(kind.any()) for kind in kinds)
        rows.append(
            DetectorRow(
                language=code,
                chose=code in chosen_from,
                wanted=int(kinds[0].sum()),
                others=int(kinds[1].sum()),
                features=_area(scores, *kinds) if both else None,
                probe=held_out.get(code, _area(probed, *kinds) if both else None),
            )
        )
    scaled = map(ScaledFeature, readings.features, largest.tolist())
    left_out = int((~read).sum())
    return Detectors(words, site, tuple(chosen_from), tuple(scaled), probe, tuple(rows), left_out)


def _area(scores: Tensor, wanted: Tensor, others: Tensor) -> float:
    return area_under_curve(scores[wanted], scores[others])


def _halves(
    wanted: Tensor, others: Tensor, of_language: dict[str, Tensor], words: str
) -> tuple[Tensor, Tensor]:
    """The texts of the choosing languages in two halves, bool [texts] each: of each kind in each language
    every second one. Raises ValueError where a kind has fewer than two texts."""
    first, second = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for code, there in of_language.items():
        for kind, name in ((wanted, words), (others, f"not {words}")):
            texts = (kind & there).nonzero()[:, 0]
            if len(texts) < 2:
                raise ValueError(
                    f"language {code!r}: {len(texts)} texts are {name}; a probe needs two or more"
                )
            first[texts[::2]], second[texts[1::2]] = True, True
    return first, second


def _chosen_probe(
    readings: DetectorReadings,
    wanted: Tensor,
    halves: tuple[Tensor, Tensor],
    of_language: dict[str, Tensor],
    chosen_from: Sequence[str],
) -> tuple[ChosenProbe, dict[str, float]]:
    """The best probe of all poolings and penalties, and its area on held-out halves by choosing language."""
    best: tuple[ChosenProbe, dict[str, float]] | None = None
    poolings: tuple[Pooling, ...] = ("mean", "max")
    for pooling, penalty in product(poolings, PENALTIES):
        x = readings.pooled(pooling)
        areas: dict[str, list[float]] = {code: [] for code in chosen_from}
        for train, test in (halves, halves[::-1]):
            scores = fitted_probe(x[train], wanted[train], penalty).scores(x)
            for code, found in areas.items():
                there = test & of_language[code]
                found.append(_area(scores, wanted & there, ~wanted & there))
        held_out = {code: mean(found) for code, found in areas.items()}
        tried = ChosenProbe(pooling, penalty, mean(held_out.values()))
        if best is None or tried.held_out > best[0].held_out:
            best = tried, held_out
    assert best is not None  # noqa: S101 - there are penalties
    return best
