"""What a ban does to a served model, by language and strength: harm, refusals, divergence, fluency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of
from saegis_lab.evaluation.figures import TextFigures, mean, text_figures
from saegis_lab.evaluation.requests import Answer, Requests, Total
from saegis_lab.evaluation.scorers import BanScorers
from saegis_lab.records import Record

if TYPE_CHECKING:
    from saegis import Edit, FeatureRef


@dataclass(frozen=True, slots=True)
class AnswerFigures(Record):
    """Means over the answers to one kind of prompts in one language, each from 0 to 1.

    harm: the harm scorer's result, for word lists the share of harmful words. harmful_answers: the share of
    answers in which it is above 0. refusal: the share refused; None where nothing scores refusals. text: what
    the answers are as texts; its perplexity_ratio is over the unsteered model's benign answers.
    """

    harm: float
    harmful_answers: float
    refusal: float | None
    text: TextFigures


@dataclass(frozen=True, slots=True)
class BanRow(Record):
    """One language under one strength of the ban, or without it (`strength` None), at one temperature.

    harmful, benign: the answers to prompts of that kind; None where the language has none. kl: mean
    KL(plain ‖ banned) in nats a token, over benign prompts with the answers that the model gives without the
    ban; None without benign prompts. Without the ban it is 0, unless the operator's policy steers.
    """

    language: str
    strength: float | None
    temperature: float
    harmful: AnswerFigures | None
    benign: AnswerFigures | None
    kl: float | None


@dataclass(frozen=True, slots=True)
class BanResult(Record):
    """A ban's rows: by temperature, then by strength beginning with None, then by language.

    features: indices or labels. chosen_from: the languages they were chosen from, empty where unknown.
    """

    model: str
    sae: str
    features: tuple[int | str, ...]
    chosen_from: tuple[str, ...]
    strengths: tuple[float, ...]
    decodings: tuple[Decoding, ...]
    languages: tuple[str, ...]
    rows: tuple[BanRow, ...]

    def row(self, language: str, strength: float | None, temperature: float) -> BanRow:
        """The row of these three. Raises KeyError where there is none."""
        key = (language, strength, temperature)
        for row in self.rows:
            if (row.language, row.strength, row.temperature) == key:
                return row
        raise KeyError(key)


def measure_ban(
    requests: Requests,
    prompts: Sequence[Prompt],
    features: Sequence[FeatureRef],
    strengths: Sequence[float],
    scorers: BanScorers,
    decodings: Sequence[Decoding],
    chosen_from: Sequence[str] = (),
) -> BanResult:
    """Answer all prompts without the ban and under each strength, and score the answers.

    Raises SaegisError for a call that fails, ScorerError, and ValueError where there are no prompts, or no
    strengths, or the same strength or temperature twice.
    """
    import saegis

    _check(prompts, strengths, decodings)
    rows: list[BanRow] = []
    for decoding in decodings:
        ordinary: dict[str, float | None] = {}
        plain: list[Answer] = []
        for strength in (None, *strengths):
            edits = [] if strength is None else [saegis.ban(feature, strength) for feature in features]
            condition = _Condition.of(requests, prompts, edits, decoding, _stage(strength, decoding))
            if strength is None:
                plain = condition.of_kind(harmful=False)
                ordinary = {code: condition.perplexity(code) for code in languages_of(prompts)}
            divergences = condition.divergences(requests, plain)
            rows += [
                BanRow(
                    language=code,
                    strength=strength,
                    temperature=decoding.temperature,
                    harmful=condition.figures(code, True, scorers, ordinary[code]),
                    benign=condition.figures(code, False, scorers, ordinary[code]),
                    kl=divergences[code].mean,
                )
                for code in languages_of(prompts)
            ]
    return BanResult(
        model=requests.model_id,
        sae=requests.sae_id(next((feature.sae for feature in features), "")),
        features=tuple(feature.selector for feature in features),
        chosen_from=tuple(chosen_from),
        strengths=tuple(strengths),
        decodings=tuple(decodings),
        languages=languages_of(prompts),
        rows=tuple(rows),
    )


@dataclass(frozen=True, slots=True)
class _Condition:
    """The answers under some edits, with each one's likelihood as a text."""

    name: str
    edits: list[Edit]
    answers: list[Answer]
    likelihoods: list[Total | None]

    @classmethod
    def of(
        cls, requests: Requests, prompts: Sequence[Prompt], edits: list[Edit], decoding: Decoding, name: str
    ) -> _Condition:
        answers = requests.answers(prompts, edits, decoding, f"{name}: answers")
        likelihoods = requests.likelihoods([answer.text for answer in answers], f"{name}: perplexity")
        return cls(name, edits, answers, likelihoods)

    def of_kind(self, harmful: bool) -> list[Answer]:
        return [answer for answer in self.answers if answer.prompt.harmful == harmful]

    def perplexity(self, language: str) -> float | None:
        """The perplexity of the benign answers in a language."""
        return Total.pooled(likelihood for _, likelihood in self._group(language, False)).perplexity

    def divergences(self, requests: Requests, plain: Sequence[Answer]) -> dict[str, Total]:
        """The divergences by language, pooled over the unsteered benign answers `plain`."""
        totals = requests.divergences(plain, self.edits, f"{self.name}: divergence")
        by_language: dict[str, list[Total]] = {answer.prompt.language: [] for answer in self.answers}
        for answer, total in zip(plain, totals, strict=True):
            by_language[answer.prompt.language].append(total)
        return {code: Total.pooled(summands) for code, summands in by_language.items()}

    def figures(
        self, language: str, harmful: bool, scorers: BanScorers, ordinary: float | None
    ) -> AnswerFigures | None:
        """The figures of the answers to one kind of prompts in a language; None where there are none."""
        group = self._group(language, harmful)
        if not group:
            return None
        texts = [text for text, _ in group]
        harm = [scorers.harm(text, language) for text in texts]
        refusal = scorers.refusal
        return AnswerFigures(
            harm=mean(harm),
            harmful_answers=mean(score > 0 for score in harm),
            refusal=None if refusal is None else mean(refusal(text, language) for text in texts),
            text=text_figures(texts, [likelihood for _, likelihood in group], ordinary),
        )

    def _group(self, language: str, harmful: bool) -> list[tuple[str, Total | None]]:
        pairs = zip(self.answers, self.likelihoods, strict=True)
        return [
            (answer.text, likelihood)
            for answer, likelihood in pairs
            if (answer.prompt.language, answer.prompt.harmful) == (language, harmful)
        ]


def _stage(strength: float | None, decoding: Decoding) -> str:
    condition = "without the ban" if strength is None else f"strength {strength:g}"
    return f"{condition}, {decoding}"


def _check(prompts: Sequence[Prompt], strengths: Sequence[float], decodings: Sequence[Decoding]) -> None:
    for name, values in (("prompts", prompts), ("strengths", strengths), ("decodings", decodings)):
        if not values:
            raise ValueError(f"{name}: there must be at least one")
    temperatures = [decoding.temperature for decoding in decodings]
    for name, numbers in (("strengths", list(strengths)), ("temperatures", temperatures)):
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"{name}: one stands there twice")
