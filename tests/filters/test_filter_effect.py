"""Effects: attributions against finite differences, divergences against a loop, sets against all orders."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saegis_lab.filters.effect import (
    Effect,
    EffectError,
    Interventions,
    Sample,
    attributions,
    divergences,
    grown_set,
    likelihood,
)
from saegis_lab.filters.subject import PLAIN, FilterSubject
from saegis_server.engine.torch.site_reading import edited
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import ablate
from tests.filters import world

SAMPLES = (
    Sample((256, 11, 12, 13, 14, 15), 3),
    Sample((256, 11, 12, 40, 41, 42, 43), 3, -1.0),
    Sample((256, 90, 91, 92), 1),
)


def objective(subject: FilterSubject, feature: int, share: float) -> float:
    """Σ sign·log p over the samples with `share` of the feature taken out at every token but the first."""
    total = 0.0
    for sample in SAMPLES:

        def take(x: Tensor) -> Tensor:
            f = subject.sae.encode(x)[..., feature].double()
            f[:, 0] = 0.0
            return x - share * f[..., None] * subject.sae.W_dec[feature].double()

        with torch.no_grad(), edited(subject.loaded.model, subject.site, take):
            logits = subject.loaded.model(input_ids=torch.tensor([sample.tokens])).logits[0].double()
        predicted = logits.log_softmax(-1)
        for place in range(sample.start, len(sample.tokens)):
            total += sample.sign * float(predicted[place - 1, sample.tokens[place]])
    return total


def test_attributions_are_finite_differences() -> None:
    subject = world.subject(double=True)
    got = attributions(subject, SAMPLES, batch_tokens=12)
    strongest = got.abs().argsort(descending=True)[:8].tolist()
    for feature in strongest:
        step = 1e-3
        slope = (objective(subject, feature, -step) - objective(subject, feature, step)) / (2.0 * step)
        assert float(got[feature]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_an_sae_that_normalises_is_refused() -> None:
    from dataclasses import replace

    from saegis_server.steering.rows import Norm

    subject = world.subject()
    with pytest.raises(EffectError, match="normalises its input"):
        attributions(replace(subject, sae=replace(subject.sae, norm=Norm.LAYER_NORM, digest="")), SAMPLES)


def test_likelihoods_and_divergences_are_those_of_a_loop() -> None:
    subject = world.subject()
    program = SiteProgram(edits=tuple(ablate(subject.sae.probe(feature)) for feature in range(10)))
    rows = [sample.tokens for sample in SAMPLES]
    plain, steered = (dict(subject.log_probabilities(rows, each)) for each in (PLAIN, program))
    for number, total in enumerate(divergences(subject, rows, program)):
        naive = 0.0
        for before, after in zip(plain[number].double(), steered[number].double(), strict=True):
            naive += sum(float(p.exp() * (p - q)) for p, q in zip(before, after, strict=True))
        assert total.nats == pytest.approx(naive, abs=1e-4)
        assert total.tokens == len(rows[number]) - 1
    naive = sum(
        float(plain[number][place - 1, sample.tokens[place]])
        for number, sample in enumerate(SAMPLES)
        for place in range(sample.start, len(sample.tokens))
    )
    assert likelihood(subject, SAMPLES) == pytest.approx(naive, abs=1e-3)
    kept = list(subject.log_probabilities(rows))
    assert divergences(subject, rows, program, kept) == divergences(subject, rows, program)
    effect = Interventions(subject, SAMPLES, rows).effect(program)
    fallen = (likelihood(subject, SAMPLES) - likelihood(subject, SAMPLES, program)) / (3 + 4 + 3)
    assert effect.harm == pytest.approx(fallen, abs=1e-5)
    assert effect.kl > 0.0


def test_a_set_grows_by_what_is_worth_most_and_stops() -> None:
    gains = {1: 0.5, 2: 0.3, 3: 0.02, 4: 0.4}
    prices = {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.1}

    def measure(features: Sequence[int]) -> Effect:
        return Effect(sum(gains[each] for each in features), sum(prices[each] for each in features))

    grown = grown_set([3, 4, 2, 1], measure, kl_price=10.0, least_gain=0.05)
    assert [growth.feature for growth in grown] == [1, 2]
    assert grown[1].effect == Effect(0.8, 0.0)
    cheap = grown_set([3, 4, 2, 1], measure, kl_price=1.0, least_gain=0.01)
    assert {growth.feature for growth in cheap} == {1, 2, 3, 4}


def test_a_sample_needs_a_token_before_what_counts_and_one_that_does() -> None:
    for start in (0, 3):
        with pytest.raises(ValueError, match="start is"):
            Sample((1, 2, 3), start)
