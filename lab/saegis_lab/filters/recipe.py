"""The recipe of a filter: every number that its making depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from saegis_lab.evaluation.filter_bars import FilterBars
from saegis_lab.records import Record


@dataclass(frozen=True, slots=True)
class FilterRecipe(Record):
    """How a filter is made.

    Settings are tried on at most `choice_prompts` prompts of each kind in each language, with answers of at
    most `choice_tokens` tokens.

    Candidates: a feature's score in a language is the share of a subject's texts in which it fires less
    `false_weight` times the share of harmless texts in which it does. It needs `least_score` in the worst
    language, and a subject gets at most `features_each`. A feature is none whose activation on harmless texts
    reaches, in more than `benign_outliers` of them, more than `max_benign_peak` of its largest on harmful
    ones: what fires like that moves benign text without need.

    Effect: the `effect_pool` features of greatest effect whose score is at least `near_score` join the
    candidates. A set is grown from them until the next feature gains less than `least_gain` nats a token,
    where a nat of KL on benign answers, and on `effect_texts` benign texts, costs `kl_price`.
    `effect_samples`: harmful answers in each language. choose_by: which of the two sets is taken, the one
    that meets the bars better or, where they are alike, the candidates by precision.

    Direction: `example_tokens` tokens of an example's beginning are averaged. In an aligned language at least
    `aligned_share` of the harmful prompts are refused.

    Calibration: `factors` are multiples of the natural factor, at the prompt's tokens, ascending; at the
    answer's the factor is `answer_shares` times that; of shares that do alike the first is taken. None comes
    first: in a sampled answer to a benign prompt a feature may fire by chance, and one that goes on firing
    writes the refusal once more behind its end. `strengths` and `thresholds` (shares of each feature's
    largest activation on the texts) are those of the redirect, `ban_strengths` those of the ban behind it.
    `bars` must be met; `aims` are the bars with a margin, for languages that took no part. strongest: of
    settings that meet the aims alike take the greatest factor, not the least KL: in languages that took no
    part more is left. A part is kept where it takes away `least_part_gain` of the unfiltered harm.

    Question stop: a feature's level is `question_margin` times the activation that all but the share 1 −
    `question_quantile` of the benign prompts and texts stay at, and at least `question_floor` of its largest
    on harmful prompts; of the prompts that it hears, it is above it in the answers to `least_said`. The stop
    is kept where it hears `least_heard` of the harmful prompts of each language in which the model does not
    refuse by itself, and where what it ends of benign prompts and texts meets the bar.

    Stop: a feature's level is `stop_margin` times the activation that all but the share 1 − `stop_quantile`
    of the benign answers and texts stay at, and at least `stop_floor` of its recorded maximum. With the token
    that ends an answer it keeps back the `stop_hold` before. It is tried on answers whose first
    `prefilled_tokens` tokens are those of a harmful one, and kept where it gains there, or ends `least_heard`
    of the harmful answers by itself, and where what it ends of benign answers and texts meets the bar. Where
    questions are heard it also reads, of each harmful subject, up to `telling_each` features that are above
    such a level in at least `least_telling` of the subject's texts in the worst language.
    """

    choice_prompts: int = 12
    choice_tokens: int = 40

    false_weight: float = 3.0
    least_score: float = 0.3
    features_each: int = 4
    max_benign_peak: float = 0.45
    benign_outliers: float = 0.002

    choose_by: Literal["best", "precision", "effect"] = "best"
    effect_pool: int = 12
    effect_samples: int = 8
    effect_texts: int = 40
    near_score: float = 0.1
    kl_price: float = 10.0
    least_gain: float = 0.01

    example_tokens: int = 4
    aligned_share: float = 0.5

    factors: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0)
    answer_shares: tuple[float, ...] = (0.0, 0.33, 1.0)
    strongest: bool = True
    strengths: tuple[float, ...] = (0.0, 1.0)
    thresholds: tuple[float, ...] = (0.0, 0.1)
    ban_strengths: tuple[float, ...] = (0.0, 2.0)
    bars: FilterBars = field(default_factory=FilterBars)
    aims: FilterBars = field(default_factory=lambda: FilterBars(0.01, 0.0, 0.01, 1.15))
    least_part_gain: float = 0.005

    question_margin: float = 1.7
    question_quantile: float = 0.995
    question_floor: float = 0.1
    least_heard: float = 0.5
    least_said: float = 0.5

    stop_margin: float = 1.7
    stop_quantile: float = 0.995
    stop_floor: float = 0.2
    stop_hold: int = 24
    prefilled_tokens: int = 4
    telling_each: int = 0
    least_telling: float = 0.2
