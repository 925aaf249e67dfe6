"""The making of a filter: features, direction, rows and stop, chosen in the languages that take part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from saegis_lab.evaluation.experiment import Prompt, first_of_each
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.filters.calibrate import Calibrated, Rows, Setting, calibrate, cost, natural_factor
from saegis_lab.filters.candidates import (
    Candidate,
    Firings,
    by_precision,
    near_candidates,
    quiet_features,
    subject_scores,
)
from saegis_lab.filters.direction import (
    DirectionError,
    RefusalDirection,
    RefusalExample,
    aligned_language,
    from_examples,
    from_feature,
    from_prompts,
)
from saegis_lab.filters.effect import Effect, Growth, Interventions, Sample, attributions, grown_set
from saegis_lab.filters.question import (
    PromptPeaks,
    Questions,
    QuestionStop,
    answers_to_harm,
    prompt_peaks,
    question_stop,
    text_peaks,
    unrefused,
)
from saegis_lab.filters.recipe import FilterRecipe
from saegis_lab.filters.stop import StopTrial, telling_features, try_stop
from saegis_lab.filters.subject import FilterSubject
from saegis_lab.filters.trials import Trials
from saegis_lab.records import Record
from saegis_lab.training.texts import LabelledText
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm

#: How the features were chosen.
How = Literal["questions", "precision", "effect"]
#: The subject of candidates that tell at a prompt's end what was asked.
QUESTION = "question"
#: Called with the name of what begins.
Progress = Callable[[str], None]


class FilterError(ValueError):
    """A filter that cannot be made from what was given, and why."""


@dataclass(frozen=True)
class Material:
    """All that choices are made from, in the languages that take part and no others.

    texts, rows and firings: labelled texts without refusals, their token ids, and what features do on them;
    prompts: of both kinds in every language; maxima: the recorded maximum of each feature that has one.
    """

    subject: FilterSubject
    languages: tuple[str, ...]
    texts: tuple[LabelledText, ...]
    rows: Sequence[Sequence[int]]
    firings: Firings
    prompts: tuple[Prompt, ...]
    scorers: BanScorers
    maxima: Mapping[int, float]

    @property
    def benign_rows(self) -> list[Sequence[int]]:
        """The token ids of the benign texts."""
        return [row for row, text in zip(self.rows, self.texts, strict=True) if not text.harmful]

    @cached_property
    def asked(self) -> PromptPeaks:
        """What features do on the prompts."""
        return prompt_peaks(self.subject, self.prompts)

    @cached_property
    def largest(self) -> Tensor:
        """The largest activation of each feature on texts and prompts, float32 [m]."""
        return torch.maximum(self.firings.largest, self.asked.whole.amax(0))

    @cached_property
    def benign_peaks(self) -> Tensor:
        """What features do on the benign texts, float32 [texts, m], see `text_peaks`."""
        return text_peaks(self.subject, self.benign_rows)

    @property
    def harmful_peaks(self) -> Tensor:
        """What features do on the harmful texts, float32 [texts, m]."""
        return self.firings.peaks[torch.tensor([text.harmful for text in self.texts])]

    def questions(self, refusing: str | None, tokens: int) -> Questions:
        """What a question stop is chosen from; refusing: the language in which the model refuses, tokens: of
        an answer at most."""
        harmful: dict[str, Tensor] = {}
        for code in self.languages:
            own = torch.tensor([text.harmful and text.language == code for text in self.texts])
            if own.any():
                harmful[code] = self.firings.peaks[own].amax(0)
        asking = unrefused(self.languages, refusing)
        answers = answers_to_harm(self.subject, self.prompts, asking, tokens)
        return Questions(self.prompts, self.asked, answers, self.benign_peaks, harmful, self.maxima, asking)


@dataclass(frozen=True, slots=True)
class DirectionSource:
    """What the refusal direction is made from: a vector of the user's, examples, a feature, or, where all are
    None, the prompts, with `aligned` as the language in which the model refuses (None: found)."""

    vector: RefusalDirection | None = None
    examples: tuple[RefusalExample, ...] | None = None
    feature: int | None = None
    aligned: str | None = None


@dataclass(frozen=True, slots=True)
class FeatureChoice(Record):
    """A set of features and what came of it. natural: the factor that the recipe's multiples are of; growth:
    of a set chosen by effect, the features in the order in which they came."""

    how: How
    candidates: tuple[Candidate, ...]
    natural: float
    calibrated: Calibrated
    growth: tuple[Growth, ...] = ()

    @property
    def features(self) -> tuple[int, ...]:
        """The features' indices."""
        return tuple(candidate.feature for candidate in self.candidates)


@dataclass(frozen=True)
class MadeFilter:
    """A filter. aligned: the language of its direction, None where that is not made from prompts; other: the
    choice of features that was not taken, None where there was one alone; question, stop: what was tried,
    None where no reading tells harmful questions, or harmful answers, apart."""

    languages: tuple[str, ...]
    recipe: FilterRecipe
    direction: RefusalDirection
    aligned: str | None
    choice: FeatureChoice
    other: FeatureChoice | None
    rows: Rows
    question: QuestionStop | None
    stop: StopTrial | None

    @property
    def hears(self) -> bool:
        """Whether the question stop is part of the filter: where the rows and the answer's stop leave harm.
        Elsewhere the model's refusal tells a user more than an answer that ends before it begins."""
        pays = self.question is not None and self.question.pays(self.recipe)
        return pays and (self.stop is None or not self.stops or self.stop.leaks(self.recipe))

    @property
    def stops(self) -> bool:
        """Whether the answer's stop is part of the filter."""
        return self.stop is not None and self.stop.pays(self.recipe)

    @property
    def program(self) -> SiteProgram:
        """Its rows."""
        return self.rows.program(self.choice.calibrated.best.setting)


def make_filter(
    material: Material, source: DirectionSource, recipe: FilterRecipe, progress: Progress = lambda _: None
) -> MadeFilter:
    """The filter for this material. Raises FilterError, DirectionError and ValueError where it cannot be."""
    if material.subject.sae.k is not None:
        raise FilterError(
            f"the SAE {material.subject.sae.name} decides by rank which features are active, and whether "
            "what a policy redirects is active must not be up to others: take one of another kind"
        )
    progress("answering without a filter")
    trials = Trials(
        material.subject,
        first_of_each(material.prompts, recipe.choice_prompts),
        material.scorers,
        recipe.choice_tokens,
        lambda: progress("trying settings"),
    )
    refused = {
        code: trials.refused_share(trials.plain, code, harmful=True) or 0.0 for code in material.languages
    }
    refusing = source.aligned or aligned_language(refused, recipe.aligned_share)
    aligned, direction = _direction(material, source, refusing, refused, recipe)
    progress("hearing questions")
    question = question_stop(material.questions(refusing, recipe.choice_tokens), recipe)
    choices = _choices(material, question, direction, trials, recipe, progress)
    choice = choices[0]
    rows = _rows(material, choice.candidates, direction)
    progress("trying a stop")
    read = _read_by_stop(material, choice, question, recipe)
    maxima = {feature: material.maxima[feature] for feature in read if feature in material.maxima}
    program = rows.program(choice.calibrated.best.setting)
    said = material.harmful_peaks if recipe.telling_each else material.harmful_peaks[:0]
    stop = (
        try_stop(material.subject, trials, program, material.benign_peaks, said, maxima, recipe)
        if maxima
        else None
    )
    return MadeFilter(
        material.languages,
        recipe,
        direction,
        aligned,
        choice,
        choices[1] if len(choices) > 1 else None,
        rows,
        question,
        stop,
    )


def _read_by_stop(
    material: Material, choice: FeatureChoice, question: QuestionStop | None, recipe: FilterRecipe
) -> tuple[int, ...]:
    """The features that may end an answer: those that hear questions, or all, if none do. Features of words
    fire on other words of languages that took no part; those that a recipe takes all the same join them."""
    heard = choice.features if question is None else tuple(each.feature for each in question.readings)
    telling = telling_features(material.firings.peaks, material.texts, material.languages, recipe)
    return tuple(dict.fromkeys((*heard, *telling)))


def _choices(
    material: Material,
    question: QuestionStop | None,
    direction: RefusalDirection,
    trials: Trials,
    recipe: FilterRecipe,
    progress: Progress,
) -> list[FeatureChoice]:
    """The sets of features that were calibrated, the better one first. Where the question stop pays there is
    one, its features: in languages that took no part they hardly fire on what is benign, so that the redirect
    may be strong. Raises FilterError where there is none."""
    if question is not None and question.pays(recipe):
        return [_chosen("questions", _hearing(question), (), material, direction, trials, recipe)]
    scores = _scores(material, recipe)
    precise = by_precision(scores, recipe.least_score, recipe.features_each)
    choices = []
    if precise and recipe.choose_by != "effect":
        choices.append(_chosen("precision", precise, (), material, direction, trials, recipe))
    progress("estimating effects")
    pool = near_candidates(scores, recipe)
    if pool and recipe.choose_by != "precision" and material.subject.sae.norm is Norm.NONE:
        growth = _grown(material, precise, pool, direction, trials, recipe)
        named = {candidate.feature: candidate for candidate in pool}
        effective = tuple(named[step.feature] for step in growth)
        same = {each.feature for each in effective} == {each.feature for each in precise}
        if effective and not (choices and same):
            choices.append(_chosen("effect", effective, growth, material, direction, trials, recipe))
    if not choices:
        raise FilterError(
            f"no feature fires on the harmful texts in all of {', '.join(material.languages)} often enough"
        )
    return sorted(
        choices, key=lambda choice: (*cost(choice.calibrated.best, recipe)[:4], choice.how != "precision")
    )


def _hearing(question: QuestionStop) -> tuple[Candidate, ...]:
    """The features of a question stop, each left alone up to its level; the score of each is what they hear
    in the worst language."""
    score = min(question.heard.values())
    return tuple(Candidate(reading.feature, QUESTION, score, reading.level) for reading in question.readings)


def _scores(material: Material, recipe: FilterRecipe) -> dict[str, Tensor]:
    """Each subject's scores, −∞ for features that are loud on harmless texts."""
    firings = material.firings
    scores = subject_scores(firings.fired, material.texts, material.languages, recipe.false_weight)
    quiet = quiet_features(firings.peaks, material.texts, recipe.max_benign_peak, recipe.benign_outliers)
    return {subject: values.masked_fill(~quiet, -torch.inf) for subject, values in scores.items()}


def _direction(
    material: Material,
    source: DirectionSource,
    refusing: str | None,
    refused: Mapping[str, float],
    recipe: FilterRecipe,
) -> tuple[str | None, RefusalDirection]:
    """The language that the direction is made from, where it is made from prompts, and the direction.

    refusing: the language in which the model refuses, if there is one; refused: the share of the harmful
    prompts that it refuses in each.
    """
    if source.vector is not None:
        return None, source.vector
    if source.examples is not None:
        return None, from_examples(material.subject, source.examples, recipe.example_tokens)
    if source.feature is not None:
        largest = material.maxima.get(source.feature, 0.0)
        return None, from_feature(material.subject, source.feature, largest)
    if refusing is None:
        shares = ", ".join(f"{code} {share:.0%}" for code, share in refused.items())
        raise DirectionError(
            f"the model refuses in none of the languages (harmful prompts refused: {shares})"
        )
    harmful, benign = (
        {
            code: [each.prompt for each in material.prompts if each.language == code and each.harmful is kind]
            for code in material.languages
        }
        for kind in (True, False)
    )
    return refusing, from_prompts(material.subject, harmful, benign, refusing)


def _rows(material: Material, candidates: Sequence[Candidate], direction: RefusalDirection) -> Rows:
    largest = {each.feature: float(material.largest[each.feature]) for each in candidates}
    quiet = {each.feature: each.quiet for each in candidates}
    return Rows(material.subject, largest, direction, quiet)


def _natural(material: Material, features: Sequence[int], direction: RefusalDirection) -> float:
    """The natural factor: the direction's length over the features' typical activation. That is the mean over
    the harmful texts, or over the harmful prompts if it is more there, of the largest one in each. Raises
    ValueError where they never fire."""
    in_prompts = material.asked.whole[torch.tensor([prompt.harmful for prompt in material.prompts])]
    typical = max(
        float(peaks[:, list(features)].amax(1).mean()) for peaks in (material.harmful_peaks, in_prompts)
    )
    return natural_factor(direction.norm, typical)


def _chosen(
    how: How,
    candidates: tuple[Candidate, ...],
    growth: tuple[Growth, ...],
    material: Material,
    direction: RefusalDirection,
    trials: Trials,
    recipe: FilterRecipe,
) -> FeatureChoice:
    """The candidates with the setting that suits them best."""
    natural = _natural(material, [candidate.feature for candidate in candidates], direction)
    rows = _rows(material, candidates, direction)
    return FeatureChoice(how, candidates, natural, calibrate(trials, rows, natural, recipe), growth)


def effect_samples(material: Material, trials: Trials, recipe: FilterRecipe) -> tuple[Sample, ...]:
    """What effects are estimated on: harmful answers and, behind the same prompts, answers to benign ones,
    with the opposite sign. A language without harmful answers gives its harmful texts, whole."""
    samples: list[Sample] = []
    for code in material.languages:
        harmful = [each for each in trials.harmful_answers() if each.prompt.language == code]
        benign = [
            each
            for each in trials.plain
            if each.prompt.language == code and not each.prompt.harmful and each.answer
        ]
        for number, each in enumerate(harmful[: recipe.effect_samples]):
            samples.append(each.sample())
            if benign:
                instead = each.asked + benign[number % len(benign)].answer
                samples.append(Sample(instead, len(each.asked), -1.0))
        if not harmful:
            rows = (
                tuple(row)
                for row, text in zip(material.rows, material.texts, strict=True)
                if text.harmful and text.language == code and len(row) > 1
            )
            samples += [Sample(row, 1) for row, _ in zip(rows, range(recipe.effect_samples), strict=False)]
    return tuple(samples)


def _grown(
    material: Material,
    precise: Sequence[Candidate],
    pool: Sequence[Candidate],
    direction: RefusalDirection,
    trials: Trials,
    recipe: FilterRecipe,
) -> tuple[Growth, ...]:
    """A set grown under the redirect at its natural factor: from the precise candidates, and from those near
    them by the greatest estimated effect."""
    subject = material.subject
    samples = effect_samples(material, trials, recipe)
    if not samples:
        return ()
    estimated = attributions(subject, samples)
    ranked = sorted((each.feature for each in pool), key=lambda feature: -float(estimated[feature]))
    tried = list(dict.fromkeys([*(each.feature for each in precise), *ranked[: recipe.effect_pool]]))
    benign = [each.conversation for each in trials.plain if not each.prompt.harmful]
    benign += [tuple(row) for row in material.benign_rows if len(row) > 1][: recipe.effect_texts]
    interventions = Interventions(subject, [sample for sample in samples if sample.sign > 0.0], benign)
    factor = _natural(material, tried, direction)
    named = {each.feature: each for each in pool}

    def measure(features: Sequence[int]) -> Effect:
        rows = _rows(material, [named[feature] for feature in features], direction)
        return interventions.effect(rows.program(Setting(factor)))

    return grown_set([each for each in tried if each in named], measure, recipe.kl_price, recipe.least_gain)
