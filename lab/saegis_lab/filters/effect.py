"""Effect: what features do to the likelihood of harmful answers, estimated by gradients and then measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saegis_lab.evaluation.requests import Total
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_lab.records import Record
from saegis_server.engine.torch.site_reading import edited
from saegis_server.sae.autoencoder import times
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm


class EffectError(ValueError):
    """An effect that cannot be estimated, and why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A text whose tokens from `start` on count, at least one before it: an answer behind its prompt.

    sign: 1 for a harmful answer, −1 for what the model should say instead.
    """

    tokens: tuple[int, ...]
    start: int
    sign: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.tokens):
            raise ValueError(f"start is {self.start}; it must leave a token before it and one behind")


def attributions(subject: FilterSubject, samples: Sequence[Sample], batch_tokens: int = 2048) -> Tensor:
    """For every feature float64 [m]: the sum over the samples and their tokens of sign·f·(w·g). g is the
    gradient of the log probability of a sample's tokens that count at the token's activation, f the feature
    and w its decoder row. To first order it is how much the log probabilities fall without the feature.

    Tokens that rows never move take no part. Raises EffectError for an SAE that normalises its input, whose
    writes no single row gives.
    """
    if subject.sae.norm is not Norm.NONE:
        raise EffectError(f"the SAE normalises its input ({subject.sae.norm.name.lower()})")
    totals = torch.zeros(subject.sae.features, dtype=torch.float64)
    order = sorted(samples, key=lambda sample: -len(sample.tokens))
    while order:
        count = max(1, subject.fitting(batch_tokens) // len(order[0].tokens))
        group, order = order[:count], order[count:]
        totals += _batch_attributions(subject, group)
    return totals


def _batch_attributions(subject: FilterSubject, samples: Sequence[Sample]) -> Tensor:
    texts = subject.padded([sample.tokens for sample in samples])
    caught: list[Tensor] = []

    def catch(x: Tensor) -> Tensor:
        caught.append(x.detach().requires_grad_())
        return caught[-1]

    with torch.enable_grad(), edited(subject.loaded.model, subject.site, catch):
        logits = subject.loaded.model(input_ids=texts.ids, use_cache=False).logits
        objective = torch.stack(
            [
                sample.sign * _log_probability(logits[row].float().log_softmax(-1), sample)
                for row, sample in enumerate(samples)
            ]
        ).sum()
        (gradient,) = torch.autograd.grad(objective, caught[0])
    x, g = caught[0].detach()[texts.moves], gradient[texts.moves].float()
    f = subject.sae.encode(x)
    return (f * times(g, subject.sae.W_dec.T)).double().sum(0).cpu()


def _log_probability(log_probabilities: Tensor, sample: Sample) -> Tensor:
    """The log probability of the tokens that count; log_probabilities [length or more, vocabulary] of the
    token after each."""
    targets = torch.tensor(sample.tokens[sample.start :], device=log_probabilities.device)
    places = torch.arange(sample.start - 1, len(sample.tokens) - 1, device=log_probabilities.device)
    return log_probabilities[places, targets].sum()


@dataclass(frozen=True, slots=True)
class Effect(Record):
    """What some rows do: `harm`, by how many nats a token the samples' log probability falls, and `kl`, the
    divergence from the plain model on benign text, in nats a token."""

    harm: float
    kl: float

    def worth(self, kl_price: float) -> float:
        """The gain less the price of the divergence, in nats a token."""
        return self.harm - kl_price * self.kl


#: The most numbers that the plain model's predictions may be kept in.
_MOST_KEPT = 1 << 27


class Interventions:
    """Measures rows on harmful answers and on benign texts; the plain model's part is done once."""

    def __init__(
        self, subject: FilterSubject, samples: Sequence[Sample], benign: Sequence[Sequence[int]]
    ) -> None:
        """samples: harmful answers; benign: the token ids of texts of two tokens or more."""
        self._subject, self._samples, self._benign = subject, samples, benign
        self._tokens = sum(len(sample.tokens) - sample.start for sample in samples)
        self._before = likelihood(subject, samples)
        numbers = sum(map(len, benign)) * subject.vocabulary
        self._plain = list(subject.log_probabilities(benign)) if numbers <= _MOST_KEPT else None

    def effect(self, program: SiteProgram) -> Effect:
        """What these rows do."""
        fallen = self._before - likelihood(self._subject, self._samples, program)
        divergence = Total.pooled(divergences(self._subject, self._benign, program, self._plain))
        return Effect(fallen / max(self._tokens, 1), divergence.mean or 0.0)


def likelihood(subject: FilterSubject, samples: Sequence[Sample], program: SiteProgram = PLAIN) -> float:
    """The log probability of all tokens that count, in nats."""
    rows = [sample.tokens for sample in samples]
    return math.fsum(
        float(_log_probability(values, samples[number]))
        for number, values in subject.log_probabilities(rows, program)
    )


def divergences(
    subject: FilterSubject,
    texts: Sequence[Sequence[int]],
    program: SiteProgram,
    plain: Iterable[tuple[int, Tensor]] | None = None,
) -> list[Total]:
    """KL(plain ‖ under the rows) of each text of two tokens or more, over each token but the first.

    plain: what the plain model predicts, as `log_probabilities` gives it; None to ask it.
    """
    totals = [Total()] * len(texts)
    before = subject.log_probabilities(texts) if plain is None else plain
    for (number, own), (_, steered) in zip(before, subject.log_probabilities(texts, program), strict=True):
        nats = float((own.exp() * (own - steered)).sum(dtype=torch.float64))
        totals[number] = Total(nats, len(own))
    return totals


@dataclass(frozen=True, slots=True)
class Growth(Record):
    """A feature that was taken into a set, and the effect of the set with it."""

    feature: int
    effect: Effect


def grown_set(
    pool: Sequence[int],
    measure: Callable[[Sequence[int]], Effect],
    kl_price: float,
    least_gain: float,
) -> tuple[Growth, ...]:
    """A set grown from `pool` one feature at a time, each the one that makes the set worth most, until the
    best one adds less than `least_gain`.

    A feature's last gain bounds its next one for most sets, so those are tried in its order and only while
    they could still be best. measure: the effect of a set.
    """
    chosen: list[Growth] = []
    worth = 0.0
    hopes = dict.fromkeys(pool, math.inf)
    while hopes:
        best: tuple[float, int, Effect] | None = None
        for feature in sorted(hopes, key=lambda each: -hopes[each]):
            if best is not None and hopes[feature] <= best[0]:
                break
            effect = measure([*(growth.feature for growth in chosen), feature])
            hopes[feature] = effect.worth(kl_price) - worth
            if best is None or hopes[feature] > best[0]:
                best = hopes[feature], feature, effect
        if best is None or best[0] < least_gain:
            break
        worth += best[0]
        chosen.append(Growth(best[1], best[2]))
        del hopes[best[1]]
    return tuple(chosen)
